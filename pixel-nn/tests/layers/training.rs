//! What trains.

use super::*;

/// A part of the user's own has gradients, also where it had to be rotated first.
#[cfg(feature = "autodiff")]
#[test]
fn a_part_that_is_put_beside_a_rotated_weight_trains() {
    let device = Device::flex().autodiff();
    let layer = PIXELLinearConfig::new(24, 16).with_codec(codec("additive:2")).with_rotate(Some(true)).init(&device);
    let factor = |shape: [usize; 2]| Param::from_tensor(Tensor::from_inner(normal(shape)).require_grad());
    let layer = layer.with_low_rank(LowRankParams { down: factor([24, 2]), up: factor([2, 16]) });
    let x = Tensor::from_inner(normal([5, 24]));
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
    for text in CODECS {
        let config = PIXELLinearConfig::new(24, 16).with_codec(codec(text)).with_rank(Some(2));
        let mut layer = config.init(&device);
        layer.weight = layer.weight.with_trained_dictionary(true);
        let codes = layer.weight.codes().val().into_data();
        let x = Tensor::from_inner(normal([32, 24]));
        let target = Tensor::from_inner(normal([32, 16]) * 0.5);
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
        let valid = layer.valid().with_synthesis(SynthesisMode::OnDemandF32);
        assert!(!valid.weight.scales().val().is_autodiff());
        assert!(
            distance(valid.forward(x.clone().without_autodiff()), layer.forward(x.clone()).without_autodiff()) < 1e-5
        );
    }
}

/// What training changes by default, an archive holds.
#[cfg(feature = "autodiff")]
#[test]
fn a_trained_layer_goes_into_an_archive() {
    use burn::optim::{AdamConfig, GradientsParams};
    for text in CODECS {
        let (layer, _) = PIXELLinear::from_linear(&dense(32, 24), &codec(text), 1).unwrap();
        let mut layer = layer.train();
        let x = Tensor::from_inner(normal([16, 32]));
        let mut optimizer = AdamConfig::new().init();
        for _ in 0..3 {
            let gradients = layer.forward(x.clone()).powf_scalar(2.0).mean().backward();
            assert!(layer.weight.dictionary().val().grad(&gradients).is_none(), "{text}");
            let gradients = GradientsParams::from_grads(gradients, &layer);
            layer = optimizer.step(0.01, layer, gradients);
        }
        let layer = layer.valid();
        let packed = layer.weight.to_packed().unwrap_or_else(|error| panic!("{text}: {error}"));
        let again = PIXELLinear::from_packed(&packed, None, &Device::flex()).unwrap();
        assert!(distance(again.weight.synthesize(), layer.weight.synthesize()) < 1e-3, "{text}");
    }
}
