//! Linear layers, attention and embeddings: conversion, display, errors.

use super::*;

#[test]
fn a_converted_layer_is_the_dense_layer_of_its_own_weight() {
    let linear = dense(70, 45);
    let x = normal([2, 3, 70]);
    for text in CODECS {
        let (layer, error) = PIXELLinear::from_linear(&linear, &codec(text), 5).unwrap();
        let again = layer.to_dense();
        agrees(&layer, &x, &again.forward(x.clone()), text);
        // Against the original: the error that was reported, and not more.
        let weight = |linear: &Linear| host(linear.weight.val());
        let found = pixel_core::math::metrics::ErrorSums::between(&weight(&linear), &weight(&again));
        assert!(abs_diff_eq!(found.relative_mse() / error.relative_mse(), 1.0, epsilon = 1e-3), "{text}");
        assert_eq!(host(again.bias.unwrap().val()), host(linear.bias.clone().unwrap().val()));
    }
}

#[test]
fn the_display_tells_shape_codec_and_bits() {
    let (layer, _) = PIXELLinear::from_linear(&dense(64, 32), &codec("uniform:4:group=32"), 0).unwrap();
    // 4 bits, and for 32 weights a scale of 16 and a zero point of 4. Parameters: 64 scales, 16 levels, 32 biases.
    assert_eq!(
        layer.to_string(),
        "PIXELLinear {d_input: 64, d_output: 32, bias: true, codec: uniform:4:group=32, \
         bits_per_weight: 4.625, params: 112}"
    );
    let table = PIXELEmbeddingConfig::new(100, 64).init(&Device::flex());
    assert_eq!(
        table.to_string(),
        "PIXELEmbedding {n_embedding: 100, d_model: 64, codec: uniform:8, bits_per_weight: 8.375, params: 356}"
    );
}

#[test]
fn layers_that_share_an_input_give_what_they_give_alone() {
    let x = normal([2, 3, 70]);
    for text in CODECS {
        // The seeds of the rotations: one comes back after another was used.
        let layer = |seed| PIXELLinear::from_linear(&dense(70, 45), &codec(text), seed).unwrap().0;
        let layers = [5, 5, 6, 5].map(layer);
        let shared = SharedInput::new(x.clone());
        for layer in &layers {
            assert_eq!(host(layer.forward_shared(&shared)), host(layer.forward(x.clone())), "{text}");
        }
        for packed in [protected(text, [45, 70]), with_low_rank(text, [45, 70])] {
            let layer = PIXELLinear::from_packed(&packed, None, &Device::flex()).unwrap();
            assert_eq!(host(layer.forward_shared(&shared)), host(layer.forward(x.clone())), "{text}");
        }
    }
}

#[test]
fn visitors_see_three_parameters_and_a_bias() {
    #[derive(Default)]
    struct Paths(Vec<String>, Vec<String>);
    impl ModuleVisitor for Paths {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.push(format!("{} {:?}", self.0.join("."), param.dims()));
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            assert_eq!(param.val().dtype(), DType::U32);
            self.1.push(format!("{} {:?}", self.0.join("."), param.dims()));
        }
    }
    let layer = PIXELLinearConfig::new(64, 32).with_codec(codec("additive:2")).init(&Device::flex());
    let mut paths = Paths::default();
    layer.visit(&mut paths);
    assert_eq!(
        paths.1,
        [
            "weight.codes.32x64 additive:2 rotation 0 [128]",
            "weight.scales [32, 1]",
            "weight.dictionary [512]",
            "bias [32]"
        ]
    );
    assert_eq!(layer.num_params(), 32 + 512 + 32);
}

#[test]
fn an_embedding_synthesises_the_rows_that_are_asked_for() {
    let device = Device::flex();
    let table = EmbeddingConfig::new(90, 40).init(&device);
    let tokens = Tensor::<2, Int>::from_data([[3, 89, 3], [0, 41, 7]], &device);
    for text in CODECS {
        let (layer, error) = PIXELEmbedding::from_embedding(&table, &codec(text), 0).unwrap();
        let dense = layer.to_dense();
        assert!(distance(layer.forward(tokens.clone()), dense.forward(tokens.clone())) < 1e-5, "{text}");
        assert!(error.relative_mse() < 0.2, "{text}");
    }
}

#[test]
fn attention_is_compressed_and_made_dense_again() {
    let device = Device::flex();
    let dense = PIXELAttentionConfig::new(64, 4).with_n_kv_heads(2).with_causal(true).with_dropout(0.0).init(&device);
    let x = normal([2, 7, 64]);
    let packed = dense.compress(&codec("uniform:8:group=16"), 0).unwrap();
    assert!(distance(packed.forward(x.clone()), dense.forward(x.clone())) < 0.02);
    // Activations are rounded to 16 bits.
    assert!(distance(packed.to_dense().forward(x.clone()), packed.forward(x)) < 1e-3);
    assert_eq!(packed.bits_per_weight(), 8.0 + 24.0 / 16.0);
    assert_eq!(dense.stored_bytes(), 4 * (2 * 64 * 64 + 2 * 64 * 32));
}

#[test]
fn what_cannot_be_is_told_in_a_result() {
    let device = Device::flex();
    let unknown = PIXELLinearConfig::new(8, 8).with_codec(codec("fancy:2")).try_init(&device).unwrap_err().to_string();
    assert!(unknown.contains("fancy"), "{unknown}");
    let rank = PIXELLinearConfig::new(8, 4).with_rank(Some(5)).try_init(&device).unwrap_err().to_string();
    assert!(rank.contains("rank = 5 is outside 1 to 4"), "{rank}");
    let empty = PIXELLinearConfig::new(0, 8).try_init(&device).unwrap_err().to_string();
    assert!(empty.contains("8×0"), "{empty}");
    let mut linear = dense(8, 8);
    linear.weight = linear.weight.map(|w| w * f32::NAN);
    let error = PIXELLinear::from_linear(&linear, &codec("uniform:4"), 0).unwrap_err().to_string();
    assert!(error.contains("row 0, column 0 is NaN"), "{error}");
    let matrix = Matrix::new(Shape::new(8, 8).unwrap(), vec![0.5; 64]).unwrap();
    let (packed, _) = compress_weight(matrix.as_ref(), &codec("uniform:4"), None).unwrap();
    let bias = PIXELLinear::from_packed(&packed, Some(vec![0.0; 7]), &device).unwrap_err().to_string();
    assert!(bias.contains("[7]") && bias.contains("8×8"), "{bias}");
}

#[test]
#[should_panic(expected = "expected 24, got 23")]
fn an_input_of_another_width_panics_with_both() {
    let device = Device::flex();
    PIXELLinearConfig::new(24, 8).init(&device).forward(Tensor::<2>::zeros([1, 23], &device));
}
