//! The modules as a Burn user meets them: conversion, display, records, devices, training, caches, archives.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{EmbeddingConfig, Linear, LinearConfig};
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Distribution, Int, Tensor};
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::compressor::{Plan, RunOptions, compress_checkpoint};
use pixel_core::recipe::Recipe;
use pixel_core::{CodecSpec, EncodeOptions, Matrix, PackedWeight, Shape, compress, compress_owned};
use pixel_nn::{
    LayerError, LowRank, PIXELAttentionConfig, PIXELEmbedding, PIXELEmbeddingConfig, PIXELLinear, PIXELLinearConfig,
    PixelModule, SharedInput, SynthesisMode, WeightCache,
};

const CODECS: [&str; 4] = ["trellis:3:window=8", "additive:3:beam=1", "matching:2:beam=1:learned=3", "uniform:4"];

fn codec(text: &str) -> CodecSpec {
    text.parse().unwrap()
}

fn dense(d_input: usize, d_output: usize) -> Linear {
    let device = Device::flex();
    device.seed(3);
    LinearConfig::new(d_input, d_output).init(&device)
}

fn normal<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// The largest difference, over the largest value.
fn distance<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
    let largest = |values: Vec<f32>| values.into_iter().fold(0.0f32, |m, v| m.max(v.abs()));
    largest(host(found - expected.clone())) / largest(host(expected))
}

/// Holds the outputs of `layer` to `expected`: closely in f32, and as closely as activations of 16 bits allow by default.
fn agrees<const D: usize>(layer: &PIXELLinear, x: &Tensor<D>, expected: &Tensor<D>, what: &str) {
    let exact = layer.clone().with_synthesis(SynthesisMode::OnDemandF32);
    for (mode, layer, bound) in [("f32", &exact, 1e-5), ("the default", layer, 1e-4)] {
        let error = distance(layer.forward(x.clone()), expected.clone());
        assert!(error < bound, "{what}, {mode}: {error}");
    }
}

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
        let found = pixel_core::metrics::ErrorSums::between(&weight(&linear), &weight(&again));
        assert!((found.relative_mse() / error.relative_mse() - 1.0).abs() < 1e-3, "{text}");
        assert_eq!(host(again.bias.unwrap().val()), host(linear.bias.clone().unwrap().val()));
    }
}

#[test]
fn the_display_tells_shape_codec_and_bits() {
    let (layer, _) = PIXELLinear::from_linear(&dense(64, 32), &codec("uniform:4:group=32"), 0).unwrap();
    // 4 bits, and for 32 weights a scale of 16 and a zero point of 4. Parameters: 64 scales, 16 levels, 32 biases.
    assert_eq!(
        layer.to_string(),
        "PIXELLinear {d_input: 64, d_output: 32, bias: true, codec: uniform:4:group=32, bits_per_weight: 4.625, params: 112}"
    );
    let table = PIXELEmbeddingConfig::new(100, 64).init(&Device::flex());
    assert_eq!(
        table.to_string(),
        "PIXELEmbedding {n_embedding: 100, d_model: 64, codec: uniform:8, bits_per_weight: 8.375, params: 356}"
    );
}

#[test]
fn a_new_layer_has_the_deviation_of_burns() {
    let device = Device::flex();
    for text in CODECS {
        device.seed(1);
        let layer = PIXELLinearConfig::new(300, 100).with_codec(codec(text)).init(&device);
        let weights = host(layer.weight.synthesize());
        let deviation = (weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32).sqrt();
        assert!((deviation * 900f32.sqrt() - 1.0).abs() < 0.01, "{text}: {deviation}");
        let mean = weights.iter().sum::<f32>() / weights.len() as f32;
        assert!(mean.abs() < 0.1 * deviation, "{text}: mean {mean}");
        // Repeatable, and a valid packed weight.
        device.seed(1);
        let again = PIXELLinearConfig::new(300, 100).with_codec(codec(text)).init(&device);
        assert_eq!(host(again.weight.synthesize()), weights, "{text}");
        assert_eq!(layer.weight.to_packed().unwrap().shape(), Shape::new(100, 300).unwrap());
    }
}

#[test]
fn a_low_rank_part_starts_at_zero_and_adds_its_product() {
    let device = Device::flex();
    let config = PIXELLinearConfig::new(40, 24).with_rank(Some(3));
    let layer = config.init(&device);
    let x = normal([5, 40]);
    let mut without = layer.clone();
    without.weight = without.weight.without_low_rank();
    assert_eq!(host(layer.forward(x.clone())), host(without.forward(x.clone())));
    let (down, up) = (normal([40, 3]), normal([3, 24]));
    let factors = LowRank { down: Param::from_tensor(down.clone()), up: Param::from_tensor(up.clone()) };
    let layer = without.clone().with_low_rank(factors);
    let expected = without.forward(x.clone()) + x.clone().matmul(down).matmul(up);
    assert!(distance(layer.forward(x.clone()), expected.clone()) < 1e-5);
    assert!(distance(layer.to_dense().forward(x), expected) < 1e-5);
    assert_eq!(layer.stored_bytes() - without.stored_bytes(), 2 * 3 * (40 + 24));
    // An archive holds the factors, in F16.
    let packed = layer.weight.to_packed().unwrap();
    let again = PIXELLinear::from_packed(&packed, None, &device).unwrap();
    let exact = host(layer.to_dense().weight.val());
    let error = pixel_core::metrics::ErrorSums::between(&exact, &host(again.to_dense().weight.val())).relative_mse();
    assert!(error < 1e-6 && packed.num_bytes() == layer.stored_bytes(), "{error:e}");
}

#[test]
fn a_record_restores_codes_scales_and_dictionary() {
    let device = Device::flex();
    for text in CODECS {
        let (layer, _) = PIXELLinear::from_linear(&dense(48, 40), &codec(text), 0).unwrap();
        let bytes = layer.clone().into_record().into_bytes().unwrap();
        let fresh = || PIXELLinearConfig::new(48, 40).with_codec(codec(text)).init(&device);
        let loaded = fresh().load_record(ModuleRecord::from_bytes(bytes).unwrap());
        let x = normal([3, 48]);
        assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x.clone())), "{text}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer");
        layer.clone().save_file(&path).unwrap();
        assert_eq!(host(fresh().load_file(&path).forward(x.clone())), host(layer.forward(x)), "{text}");
    }
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
        for packed in [protected(text, [45, 70], 2), with_low_rank(text, [45, 70], 2)] {
            let layer = PIXELLinear::from_packed(&packed, None, &Device::flex()).unwrap();
            assert_eq!(host(layer.forward_shared(&shared)), host(layer.forward(x.clone())), "{text}");
        }
    }
}

/// A weight `[d_output, d_input]` with four protected columns, `seed` apart from others.
fn protected(text: &str, shape: [usize; 2], seed: u64) -> PackedWeight {
    Device::flex().seed(seed);
    let values = host(normal(shape));
    let matrix = Matrix::new(Shape::new(shape[0], shape[1]).unwrap(), values).unwrap();
    let options = EncodeOptions { rotation: Some(5), protect: 4, ..Default::default() };
    compress(matrix, &codec(text), None, options).unwrap().0
}

/// A packed weight with a low-rank part that holds half of its energy.
fn with_low_rank(text: &str, [m, n]: [usize; 2], seed: u64) -> PackedWeight {
    Device::flex().seed(seed);
    let matrix = |m: usize, n: usize| Matrix::new(Shape::new(m, n).unwrap(), host(normal([m, n]))).unwrap();
    let part = pixel_core::LowRank { up: matrix(m, 2), down: matrix(2, n) };
    let mut weight = part.product();
    let rotation = pixel_core::Rotation::new(n, 5);
    let mut scratch = rotation.scratch();
    weight.as_mut_slice().chunks_exact_mut(n).for_each(|row| rotation.inverse(row, &mut scratch));
    weight.as_mut_slice().iter_mut().zip(host(normal([m, n]))).for_each(|(w, v)| *w += 1.4 * v);
    let options = EncodeOptions { rotation: Some(5), ..Default::default() };
    let part = Some((&part, pixel_core::FactorStorage::Int8));
    pixel_core::compress_beside(weight, &codec(text), None, options, part).unwrap().0
}

/// A layer and a table of `packed` are its dense form, on demand and from a cache, and back again.
fn is_its_packed_weight(packed: &PackedWeight, text: &str) -> PIXELLinear {
    let device = Device::flex();
    let dense = packed.synthesize();
    let dense = Tensor::<2>::from_data(burn::tensor::TensorData::new(dense.into_vec(), [40, 48]), &device);
    let layer = PIXELLinear::from_packed(packed, None, &device).unwrap();
    let x = normal([2, 3, 48]);
    let expected = x.clone().matmul(dense.clone().transpose().unsqueeze());
    agrees(&layer, &x, &expected, text);
    assert!(distance(layer.to_dense().forward(x.clone()), expected.clone()) < 1e-5, "{text}");
    let cached = layer.clone().with_synthesis(SynthesisMode::Cached(WeightCache::new(1 << 20)));
    assert!(distance(cached.forward(x), expected) < 1e-5, "{text}");
    assert!(layer.weight.to_packed().unwrap().streams().eq(packed.streams()), "{text}");
    let table = PIXELEmbedding::from_packed(packed, &device).unwrap();
    let tokens = Tensor::<2, Int>::from_data([[7, 0, 7], [39, 1, 2]], &device);
    let rows = dense.select(0, tokens.clone().reshape([6])).reshape([2, 3, 48]);
    assert!(distance(table.forward(tokens), rows) < 1e-5, "{text}");
    layer
}

#[test]
fn layers_with_low_rank_parts_are_their_packed_weight() {
    for text in CODECS {
        let packed = with_low_rank(text, [40, 48], 1);
        let layer = is_its_packed_weight(&packed, text);
        let plain = PIXELLinear::from_packed(&compress_owned_of(&packed), None, &Device::flex()).unwrap();
        assert_eq!(layer.num_params(), plain.num_params() + 2 * (40 + 48), "{text}");
        assert_eq!(layer.stored_bytes(), plain.stored_bytes() + 2 * (40 + 48) + 2 * 2 * 2, "{text}");
        assert_eq!(layer.weight.device_bytes(), plain.weight.device_bytes() + 4 * 2 * (40 + 48), "{text}");
        assert!(layer.to_string().contains("rank: 2"), "{layer}");
    }
}

#[test]
fn a_record_restores_a_low_rank_part() {
    let device = Device::flex();
    for text in CODECS {
        let layer = |seed| PIXELLinear::from_packed(&with_low_rank(text, [40, 48], seed), None, &device).unwrap();
        let (layer, other) = (layer(1), layer(2));
        let bytes = layer.clone().into_record().into_bytes().unwrap();
        let loaded = other.load_record(ModuleRecord::from_bytes(bytes).unwrap());
        let x = normal([3, 48]);
        assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x)), "{text}");
    }
}

#[test]
fn layers_with_protected_columns_are_their_packed_weight() {
    let device = Device::flex();
    for text in CODECS {
        let packed = protected(text, [40, 48], 1);
        let layer = is_its_packed_weight(&packed, text);
        // Values are parameters; columns and values are counted.
        let plain = PIXELLinear::from_packed(&compress_owned_of(&packed), None, &device).unwrap();
        assert_eq!(layer.num_params(), plain.num_params() + 40 * 4, "{text}");
        assert_eq!(layer.stored_bytes(), plain.stored_bytes() + 4 * 4 + 40 * 4 * 2, "{text}");
        assert_eq!(layer.weight.device_bytes(), plain.weight.device_bytes() + 4 * 4 + 40 * 4 * 4, "{text}");
    }
}

/// The same weight with nothing beside its codes.
fn compress_owned_of(packed: &PackedWeight) -> PackedWeight {
    let header = packed.header();
    compress_owned(packed.synthesize(), &header.codec, header.rotation).unwrap().0
}

#[test]
fn a_record_restores_protected_columns() {
    let device = Device::flex();
    for text in CODECS {
        let layer = |seed| PIXELLinear::from_packed(&protected(text, [40, 48], seed), None, &device).unwrap();
        let (layer, other) = (layer(1), layer(2));
        let columns = |layer: &PIXELLinear| layer.weight.to_packed().unwrap().protected().columns().to_vec();
        assert_ne!(columns(&layer), columns(&other), "{text}");
        let bytes = layer.clone().into_record().into_bytes().unwrap();
        let loaded = other.load_record(ModuleRecord::from_bytes(bytes).unwrap());
        let x = normal([3, 48]);
        assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x)), "{text}");
        assert_eq!(columns(&layer), columns(&loaded), "{text}");
    }
}

#[test]
fn safetensors_hold_a_layer() {
    use burn::store::{ModuleSnapshot, SafetensorsStore};
    let device = Device::flex();
    let (layer, _) = PIXELLinear::from_linear(&dense(48, 40), &codec(CODECS[0]), 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    layer.save_into(&mut SafetensorsStore::from_file(&path)).unwrap();
    let mut loaded = PIXELLinearConfig::new(48, 40).with_codec(codec(CODECS[0])).init(&device);
    loaded.load_from(&mut SafetensorsStore::from_file(&path)).unwrap();
    let x = normal([3, 48]);
    assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x)));
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
    assert_eq!(paths.1, ["weight.codes [128]", "weight.scales [32, 1]", "weight.dictionary [512]", "bias [32]"]);
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
fn a_cache_obeys_its_budget_and_gives_the_same_results() {
    let device = Device::flex();
    let bytes = 64 * 64 * 4;
    let cache = WeightCache::new(2 * bytes + 100);
    let x = normal([2, 64]);
    let layers: Vec<PIXELLinear> = (0..3)
        .map(|_| PIXELLinearConfig::new(64, 64).init(&device).with_synthesis(SynthesisMode::Cached(cache.clone())))
        .collect();
    for round in 0..2 {
        for layer in &layers {
            let on_demand = layer.clone().with_synthesis(SynthesisMode::OnDemand);
            agrees(&on_demand, &x, &layer.forward(x.clone()), &format!("round {round}"));
            assert!(cache.used_bytes() <= cache.budget_bytes());
        }
    }
    assert_eq!(cache.used_bytes(), 2 * bytes);
    drop(layers);
    assert_eq!(cache.used_bytes(), 0);
}

#[test]
fn a_cache_never_serves_a_weight_that_has_changed() {
    struct Double;
    impl burn::module::ModuleMapper for Double {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|values| values * 2.0)
        }
    }
    let cache = WeightCache::new(1 << 20);
    let config = PIXELLinearConfig::new(32, 16).with_bias(false).with_codec(codec("uniform:4"));
    let layer = config.init(&Device::flex()).with_synthesis(SynthesisMode::Cached(cache));
    let x = normal([1, 32]);
    let before = layer.forward(x.clone());
    // Scales and levels doubled: four times the weight.
    let layer = layer.map(&mut Double);
    assert!(distance(layer.forward(x.clone()), before.clone() * 4.0) < 1e-5);
    // One that is changed by hand, and does not change its clone.
    let same = layer.clone();
    let (halved, before) = (layer.weight.clone().map_scales(|scales| scales * 0.5), layer.forward(x.clone()));
    let mut layer = layer;
    layer.weight = halved;
    assert!(distance(layer.forward(x.clone()), before.clone() * 0.5) < 1e-5);
    assert_eq!(host(same.forward(x.clone())), host(before));
    // A loaded record too.
    let other = config.init(&Device::flex());
    let expected = other.forward(x.clone());
    let layer = layer.load_record(other.into_record());
    assert!(distance(layer.forward(x), expected) < 1e-5);
}

/// A part of the user's own has gradients, also where it had to be rotated first.
#[cfg(feature = "autodiff")]
#[test]
fn a_part_that_is_put_beside_a_rotated_weight_trains() {
    let device = Device::flex().autodiff();
    let layer = PIXELLinearConfig::new(24, 16).with_codec(codec("additive:2")).with_rotate(Some(true)).init(&device);
    let random = |shape: [usize; 2]| {
        Param::from_tensor(Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device).require_grad())
    };
    let layer = layer.with_low_rank(LowRank { down: random([24, 2]), up: random([2, 16]) });
    let x = Tensor::<2>::random([5, 24], Distribution::Normal(0.0, 1.0), &device);
    let gradients = layer.forward(x).powf_scalar(2.0).sum().backward();
    let part = layer.weight.low_rank().unwrap();
    for factor in [&part.down, &part.up] {
        let gradient = factor.val().grad(&gradients).unwrap();
        assert!(host(gradient.abs().sum())[0] > 0.0);
    }
}

#[cfg(feature = "autodiff")]
#[test]
fn a_layer_trains_scales_dictionary_low_rank_and_bias() {
    use burn::optim::{AdamConfig, GradientsParams};
    let device = Device::flex().autodiff();
    device.seed(2);
    for text in CODECS {
        let config = PIXELLinearConfig::new(24, 16).with_codec(codec(text)).with_rank(Some(2));
        let mut layer = config.init(&device);
        let codes = layer.weight.codes().val().into_data();
        let x = Tensor::<2>::random([32, 24], Distribution::Normal(0.0, 1.0), &device);
        let target = Tensor::<2>::random([32, 16], Distribution::Normal(0.0, 0.5), &device);
        let loss = |layer: &PIXELLinear| (layer.forward(x.clone()) - target.clone()).powf_scalar(2.0).mean();
        let first = loss(&layer).into_scalar::<f32>();
        let mut optimizer = AdamConfig::new().init();
        for _ in 0..30 {
            let gradients = loss(&layer).backward();
            let of = |param: &Param<Tensor<2>>| param.val().grad(&gradients).map(|g| host(g.abs().sum())[0]);
            assert!(of(layer.weight.scales()).unwrap() > 0.0, "{text}");
            assert!(layer.weight.dictionary().val().grad(&gradients).is_some(), "{text}");
            let low_rank = layer.weight.low_rank().unwrap();
            assert!(of(&low_rank.up).unwrap() > 0.0 && of(&low_rank.down).is_some());
            let gradients = GradientsParams::from_grads(gradients, &layer);
            layer = optimizer.step(0.01, layer, gradients);
        }
        let last = loss(&layer).into_scalar::<f32>();
        assert!(last < 0.8 * first, "{text}: {first} → {last}");
        layer.weight.codes().val().into_data().assert_eq(&codes, true);
        // In inference the trained layer gives the same.
        let valid = layer.valid();
        assert!(!valid.weight.scales().val().is_autodiff());
        assert!(
            distance(valid.forward(x.clone().without_autodiff()), layer.forward(x.clone()).without_autodiff()) < 1e-5
        );
    }
}

#[cfg(feature = "autodiff")]
#[test]
fn a_trained_dictionary_does_not_go_into_an_archive_in_silence() {
    let (mut layer, _) = PIXELLinear::from_linear(&dense(32, 16), &codec("additive:2:beam=1"), 0).unwrap();
    layer.weight = layer.weight.map_dictionary(|values| values * 1.5);
    let error = layer.weight.to_packed().unwrap_err().to_string();
    assert!(error.contains("dictionary value") && error.contains("additive"), "{error}");
    // Not even a little, beside learned patterns, which are stored with the weight and may change.
    let (mut layer, _) = PIXELLinear::from_linear(&dense(32, 16), &codec("matching:2:beam=1:learned=3"), 0).unwrap();
    layer.weight = layer.weight.map_dictionary(|values| values * 1.0005);
    let error = layer.weight.to_packed().unwrap_err().to_string();
    assert!(error.contains("dictionary value 0 of codec matching"), "{error}");
    // Scales may.
    let (mut layer, _) = PIXELLinear::from_linear(&dense(32, 16), &codec("uniform:4"), 0).unwrap();
    layer.weight = layer.weight.map_scales(|values| values * 1.5);
    assert!(layer.weight.to_packed().is_ok());
}

#[test]
fn attention_is_compressed_and_made_dense_again() {
    let device = Device::flex();
    let dense = PIXELAttentionConfig::new(64, 4).with_n_kv_heads(2).with_causal(true).with_dropout(0.0).init(&device);
    let x = normal([2, 7, 64]);
    let packed = dense.compress(&codec("uniform:8:group=16"), 0).unwrap();
    assert!(distance(packed.forward(x.clone()), dense.forward(x.clone())) < 0.02);
    assert!(distance(packed.to_dense().forward(x.clone()), packed.forward(x)) < 1e-5);
    assert_eq!(packed.bits_per_weight(), 8.0 + 24.0 / 16.0);
    assert_eq!(dense.stored_bytes(), 4 * (2 * 64 * 64 + 2 * 64 * 32));
}

#[test]
fn layers_come_out_of_an_archive() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("dense.safetensors"), folder.path().join("packed"));
    let linear = dense(64, 48);
    let bytes = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (weight, bias) = (host(linear.weight.val().transpose()), host(linear.bias.clone().unwrap().val()));
    let (weight_bytes, bias_bytes) = (bytes(weight.clone()), bytes(bias));
    let view =
        |shape: Vec<usize>, data| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data).unwrap();
    let tensors = [
        ("fc.weight", view(vec![48, 64], &weight_bytes)),
        ("fc.bias", view(vec![48], &bias_bytes)),
        ("odd.weight", view(vec![48, 64], &weight_bytes)),
        ("odd.bias", view(vec![6, 8], &bias_bytes)),
    ];
    safetensors::serialize_to_file(tensors, None, &source).unwrap();
    let recipe = Recipe::from_toml("[default]\ncodec = 'uniform'\nbits = 8").unwrap().compile().unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    compress_checkpoint(&checkpoint, &plan, &target, RunOptions::default(), &()).unwrap();

    let archive = Archive::open(&target).unwrap();
    let device = Device::flex();
    let layer = PIXELLinear::from_archive(&archive, "fc", &device).unwrap();
    let x = normal([3, 64]);
    assert!(distance(layer.forward(x.clone()), linear.forward(x.clone())) < 0.02);
    let table = PIXELEmbedding::from_archive(&archive, "fc", &device).unwrap();
    assert_eq!(table.weight.shape(), Shape::new(48, 64).unwrap());

    let missing = PIXELLinear::from_archive(&archive, "fd", &device).unwrap_err();
    assert!(matches!(missing, LayerError::Archive(_)) && missing.to_string().contains("fd.weight"), "{missing}");
    let odd = PIXELLinear::from_archive(&archive, "odd", &device).unwrap_err().to_string();
    assert!(odd.contains("odd.bias") && odd.contains("[6, 8]"), "{odd}");

    // One flipped bit anywhere in the codes is an error, not other weights.
    let file = std::fs::read_dir(&target)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"));
    let file = file.unwrap();
    let mut damaged = std::fs::read(&file).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 4;
    drop(archive);
    std::fs::write(&file, damaged).unwrap();
    let archive = Archive::open(&target).unwrap();
    let results = ["fc", "odd"].map(|name| PIXELLinear::from_archive(&archive, name, &device).is_err());
    assert!(results.contains(&true));
}

#[test]
fn what_cannot_be_is_told_in_a_result() {
    let device = Device::flex();
    let unknown = PIXELLinearConfig::new(8, 8).with_codec(codec("fancy:2")).try_init(&device).unwrap_err().to_string();
    assert!(unknown.contains("fancy"), "{unknown}");
    let rank = PIXELLinearConfig::new(8, 4).with_rank(Some(5)).try_init(&device).unwrap_err().to_string();
    assert!(rank.contains("rank = 5 is outside 1..=4"), "{rank}");
    let empty = PIXELLinearConfig::new(0, 8).try_init(&device).unwrap_err().to_string();
    assert!(empty.contains("8×0"), "{empty}");
    let mut linear = dense(8, 8);
    linear.weight = linear.weight.map(|w| w * f32::NAN);
    let error = PIXELLinear::from_linear(&linear, &codec("uniform:4"), 0).unwrap_err().to_string();
    assert!(error.contains("row 0, column 0 is NaN"), "{error}");
    let matrix = Matrix::new(Shape::new(8, 8).unwrap(), vec![0.5; 64]).unwrap();
    let (packed, _) = compress_owned(matrix, &codec("uniform:4"), None).unwrap();
    let bias = PIXELLinear::from_packed(&packed, Some(vec![0.0; 7]), &device).unwrap_err().to_string();
    assert!(bias.contains("[7]") && bias.contains("8×8"), "{bias}");
}

#[test]
#[should_panic(expected = "expected 24, got 23")]
fn an_input_of_another_width_panics_with_both() {
    let device = Device::flex();
    PIXELLinearConfig::new(24, 8).init(&device).forward(Tensor::<2>::zeros([1, 23], &device));
}
