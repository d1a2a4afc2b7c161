//! Layers on a device whose float type is half precision. One test: a device is configured once in a process.
#![cfg(feature = "flex")]

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{EmbeddingConfig, LayerNormConfig, LinearConfig, RmsNormConfig};
use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor};
use pixel_core::CodecSpec;
use pixel_nn::{
    ArchiveStore, KeyValueCache, LowRankParams, PIXELAttentionConfig, PIXELEmbedding, PIXELLinear, PIXELLinearConfig,
    Projection, ProjectionStep, ReplaceConfig, SynthesisMode, WeightCache, replace_linear_layers, replace_skeleton,
};

const TYPE: DType = DType::BF16;

fn close<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>) {
    assert_eq!(found.dtype(), TYPE, "{what}");
    let host = |t: Tensor<D>| t.into_data().convert::<f32>().try_to_vec::<f32>().unwrap();
    let error = pixel_core::math::metrics::relative_error(&host(expected), &host(found));
    assert!(error < 0.02, "{what}: {error}");
}

/// Casts all floats of a module, also those that patterns are made of.
struct Halves;

impl ModuleMapper for Halves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(TYPE))
    }
}

#[test]
fn every_layer_works_where_floats_are_halves() {
    let mut device = Device::flex();
    device.configure(FloatDType::BF16).unwrap();
    let normal =
        |rows: usize, columns: usize| Tensor::<2>::random([rows, columns], Distribution::Normal(0.0, 1.0), &device);
    let x = normal(3, 64);
    assert_eq!(x.dtype(), TYPE);
    for text in
        ["trellis:4:window=8", "additive:4:beam=1", "lapped:4:beam=1", "matching:4:beam=1:learned=3", "uniform:8"]
    {
        let codec: CodecSpec = text.parse().unwrap();
        let dense = LinearConfig::new(64, 48).init(&device);
        let (layer, _) = PIXELLinear::from_linear(&dense, &codec, 1).unwrap();
        let own = layer.weight.synthesize().transpose().cast(TYPE);
        let expected = x.clone().matmul(own) + dense.bias.clone().unwrap().val().unsqueeze();
        close(text, layer.forward(x.clone()), expected.clone());
        let cached = layer.clone().with_synthesis(SynthesisMode::Cached(WeightCache::new(1 << 20)));
        close(text, cached.forward(x.clone()), expected.clone());
        let f32s = layer.clone().with_synthesis(SynthesisMode::OnDemandF32);
        close(text, f32s.forward(x.clone()), expected.clone());
        let back = PIXELLinear::from_packed(&layer.weight.to_packed().unwrap(), None, &device).unwrap();
        assert_eq!(back.weight.synthesize().into_data(), layer.weight.synthesize().into_data(), "{text}");
        let part =
            LowRankParams { down: Param::from_tensor(normal(64, 2) * 0.0), up: Param::from_tensor(normal(2, 48)) };
        close(text, layer.clone().with_low_rank(part).forward(x.clone()), expected);

        let new = PIXELLinearConfig::new(64, 48).with_codec(codec.clone()).with_rank(Some(2)).init(&device);
        assert_eq!(new.forward(x.clone()).dtype(), TYPE, "{text}");
        let config = ReplaceConfig::new(codec.clone());
        let (small, _) = replace_linear_layers(dense.clone(), &config).unwrap();
        assert_eq!(small.forward(x.clone()).dtype(), TYPE, "{text}");
        let expected = small.forward(x.clone());
        close(text, small.map(&mut Halves).forward(x.clone()), expected);
        close(text, layer.clone().map(&mut Halves).forward(x.clone()), layer.forward(x.clone()));
        replace_skeleton(dense, &config).unwrap();
    }

    let codec: CodecSpec = "uniform:8".parse().unwrap();
    let table = EmbeddingConfig::new(20, 64).init(&device);
    let (embedding, _) = PIXELEmbedding::from_embedding(&table, &codec, 0).unwrap();
    let tokens = Tensor::<2, Int>::from_data([[1, 5, 19]], &device);
    close("embedding", embedding.forward(tokens.clone()).cast(TYPE), table.forward(tokens));

    let norm = LayerNormConfig::new(64).init(&device);
    let dense: [Projection; 2] = [64, 64].map(|n| LinearConfig::new(64, n).init(&device).into());
    let small = dense.each_ref().map(|projection| projection.compress(&codec, 0).unwrap());
    let step = |[a, b]: &[Projection; 2]| {
        ProjectionStep::new([a, b]).with_norm((&norm, 1e-5)).forward(x.clone().unsqueeze::<3>())
    };
    close("step", step(&small), step(&dense));
    let rms = RmsNormConfig::new(64).init(&device);
    let step = |[a, _]: &[Projection; 2]| {
        ProjectionStep::new([a])
            .with_norm(&rms)
            .with_residual(x.clone().unsqueeze())
            .forward(x.clone().unsqueeze::<3>())
    };
    close("step with a residual", step(&small), step(&dense));

    let attention = PIXELAttentionConfig::new(64, 4).with_n_kv_heads(2).with_causal(true).with_dropout(0.0);
    let attention = attention.with_rotary(Some(pixel_nn::attention::RotaryConfig::new())).init(&device);
    let small = attention.compress(&codec, 0).unwrap();
    let text = Tensor::<3>::random([1, 5, 64], Distribution::Normal(0.0, 1.0), &device);
    let expected = attention.forward(text.clone());
    close("attention", small.forward(text.clone()), expected.clone());
    let mut cache = KeyValueCache::new();
    close("attention with a cache", small.forward_cached(text, &mut cache), expected);

    let dir = tempfile::tempdir().unwrap();
    let store = ArchiveStore::new(dir.path().join("a.safetensors"));
    let (layer, _) =
        replace_linear_layers(LinearConfig::new(64, 48).init(&device), &ReplaceConfig::new(codec)).unwrap();
    store.save(&layer).unwrap();
    let (loaded, _) = store.load(LinearConfig::new(64, 48).init(&device)).unwrap();
    close("archive", loaded.forward(x.clone()), layer.forward(x));
    assert_eq!(loaded.num_params(), layer.num_params());
}
