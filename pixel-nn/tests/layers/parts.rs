//! Low-rank parts and protected columns.

use super::*;

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
    let factors = LowRankParams { down: Param::from_tensor(down.clone()), up: Param::from_tensor(up.clone()) };
    let layer = without.clone().with_low_rank(factors);
    let expected = without.forward(x.clone()) + x.clone().matmul(down).matmul(up);
    assert!(distance(layer.forward(x.clone()), expected.clone()) < 1e-5);
    assert!(distance(layer.to_dense().forward(x), expected) < 1e-5);
    assert_eq!(layer.stored_bytes() - without.stored_bytes(), 2 * 3 * (40 + 24));
    // An archive holds the factors, in F16.
    let packed = layer.weight.to_packed().unwrap();
    let again = PIXELLinear::from_packed(&packed, None, &device).unwrap();
    let exact = host(layer.to_dense().weight.val());
    let error =
        pixel_core::math::metrics::ErrorSums::between(&exact, &host(again.to_dense().weight.val())).relative_mse();
    assert!(error < 1e-6 && packed.num_bytes() == layer.stored_bytes(), "{error:e}");
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
        let packed = with_low_rank(text, [40, 48]);
        let layer = is_its_packed_weight(&packed, text);
        let plain = PIXELLinear::from_packed(&codes_alone(&packed), None, &Device::flex()).unwrap();
        assert_eq!(layer.num_params(), plain.num_params() + 2 * (40 + 48), "{text}");
        assert_eq!(layer.stored_bytes(), plain.stored_bytes() + 2 * (40 + 48) + 2 * 2 * 2, "{text}");
        assert_eq!(layer.weight.device_bytes(), plain.weight.device_bytes() + 4 * 2 * (40 + 48), "{text}");
        assert!(layer.to_string().contains("rank: 2"), "{layer}");
    }
}

#[test]
fn layers_with_protected_columns_are_their_packed_weight() {
    let device = Device::flex();
    for text in CODECS {
        let packed = protected(text, [40, 48]);
        let layer = is_its_packed_weight(&packed, text);
        // Values are parameters; columns and values are counted.
        let plain = PIXELLinear::from_packed(&codes_alone(&packed), None, &device).unwrap();
        assert_eq!(layer.num_params(), plain.num_params() + 40 * 4, "{text}");
        assert_eq!(layer.stored_bytes(), plain.stored_bytes() + 4 * 4 + 40 * 4 * 2, "{text}");
        assert_eq!(layer.weight.device_bytes(), plain.weight.device_bytes() + 4 * 4 + 40 * 4 * 4, "{text}");
    }
}

/// The same weight without anything in addition to its codes.
fn codes_alone(packed: &PackedWeight) -> PackedWeight {
    let header = packed.header();
    compress_weight(packed.synthesize().as_ref(), &header.codec, header.rotation).unwrap().0
}
