//! The steps of a layer against their definitions in parts.

use super::*;
use crate::attention::{AttentionSpec, CacheFormat};
use crate::forward::Activation;
use burn::tensor::Bool;

fn vector(len: usize, seed: u64, device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(gaussian(len, seed), [len]), (device, DType::F32))
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * largest, "{what}: value {i} is {found} for {expected}");
    }
}

/// A projection as a backend runs it, against its parts.
fn projection_agrees(what: &str, x: &Tensor<3>, with: ProjectionTensors<Dispatch>, tolerance: f32) {
    let parts = definition::project::<Dispatch>(x.clone().into_dispatch(), with.clone());
    let (found, expected) = (project(x.clone(), with), Tensor::<3>::from_dispatch(parts));
    assert_eq!((found.dims(), found.dtype()), (expected.dims(), expected.dtype()), "{what}");
    assert_close(what, &host(found.cast(DType::F32)), &host(expected.cast(DType::F32)), tolerance);
}

pub(super) fn projections_are_their_parts(device: &Device) {
    let (n, sizes) = (40, [24, 10, 10]);
    for (i, codecs) in [
        ["lapped:2:beam=1"; 3],
        ["trellis:2:window=8", "trellis:2:window=8", "uniform:4"],
        ["additive:2:beam=1", "matching:1:beam=1", "lapped:3:beam=1"],
    ]
    .into_iter()
    .enumerate()
    {
        let rotation = (i != 1).then_some(3);
        let weight = |i: usize| {
            let packed = Case { rotation, ..Case::new(codecs[i], sizes[i], n) }.packed();
            let bias = (i != 1).then(|| vector(sizes[i], i as u64, device));
            (PatternTensors::new(&packed, device).unwrap().with_arithmetic(Arithmetic::F32), bias)
        };
        let gamma = || vector(n, 8, device);
        for rows in [1, 3, 9] {
            let x = Tensor::<3>::from_data(TensorData::new(gaussian(2 * rows * n, 4), [2, rows, n]), device);
            let strided = x.clone().swap_dims(0, 1).add_scalar(0.0).swap_dims(0, 1);
            let residual = |width: usize| {
                Tensor::<3>::from_data(TensorData::new(gaussian(2 * rows * width, 5), [2, rows, width]), device)
            };
            let plain = ProjectionTensors::new([weight(0)]);
            projection_agrees("one", &x, plain.clone(), 1e-5);
            projection_agrees("strided", &strided, plain.with_residual(residual(24)), 1e-5);
            let three = ProjectionTensors::new([weight(0), weight(1), weight(2)]);
            projection_agrees("three", &x, three.clone().with_norm(NormTensors::rms(gamma(), 1e-5)), 1e-5);
            let post = NormTensors::layer(vector(44, 6, device), Some(vector(44, 7, device)), 1e-3);
            for activation in [Activation::Relu, Activation::Gelu, Activation::GeluTanh] {
                let full = three.clone().with_norm(NormTensors::layer(gamma(), None, 1e-5)).with_activation(activation);
                let full = full.with_residual(residual(44)).with_post_norm(post.clone());
                projection_agrees(&format!("{activation:?}"), &x, full, 3e-5);
            }
            let gated = ProjectionTensors::new([weight(1), weight(2)]).with_activation(Activation::GatedSilu);
            projection_agrees("gated", &x, gated.with_residual(residual(10)), 1e-5);
            if device.supports_dtype(DType::F16) {
                let half = ProjectionTensors::new([weight(0)]).with_norm(NormTensors::rms(gamma(), 1e-5));
                let half = half.with_residual(residual(24).cast(DType::F16));
                projection_agrees("half precision", &x.clone().cast(DType::F16), half, 1e-2);
            }
        }
    }
}

/// A text in pieces through the operation of a backend and through the definition.
fn attention_agrees(device: &Device, spec: AttentionSpec, pieces: &[usize], is_padded: bool, has_rotary: bool) {
    let (batch, d) = (2, spec.d_head);
    let total: usize = pieces.iter().sum();
    let what = format!("{spec:?}, {pieces:?}");
    let angles =
        Tensor::<2>::from_data(TensorData::new(gaussian(total * d / 2 + d / 2, 3), [total + 1, d / 2]), device);
    let norms = spec.norm_epsilon.map(|_| (vector(d, 1, device), vector(d, 2, device)));
    let mut caches = [0, 1].map(|_| AttentionCache::new(&spec, batch, total + 2, device));
    // The definition multiplies by Burn's products.
    let products = 8.0 * product_epsilon(device) as f32;
    let mut start = 0;
    for &seq in pieces {
        let width = spec.d_qkv();
        let qkv = gaussian(batch * seq * width, 10 + start as u64);
        let qkv = Tensor::<3>::from_data(TensorData::new(qkv, [batch, seq, width]), device);
        let padding = is_padded.then(|| {
            // All of the first text, and the first token of the second.
            let hidden = (0..batch * (start + seq)).map(|i| i <= start + seq);
            let hidden = TensorData::new(hidden.collect::<Vec<_>>(), [batch, start + seq]);
            Tensor::<2, Bool>::from_data(hidden, device)
        });
        let rotary = has_rotary.then(|| (angles.clone().cos(), angles.clone().sin(), start + 1));
        let inputs = AttentionInputs { rotary, norms: norms.clone(), padding };
        let [found, expected] = caches;
        let (out, found) = attend(&spec, qkv.clone(), inputs.clone(), found, start);
        let (defined, expected) =
            attention::attend_by(definition::attend::<Dispatch>, &spec, qkv, inputs, expected, start);
        start += seq;
        // Where a head lies between two integers of a narrow cache, the backends may round it either way.
        let tolerance = match spec.format {
            CacheFormat::F32 => products.max(2e-5),
            CacheFormat::Bits8 => 1e-2,
            CacheFormat::Bits4 => 0.2,
        };
        assert_close(&what, &host(out), &host(defined), tolerance);
        let ((keys, values), (k, v)) = (found.dense(&spec, start), expected.dense(&spec, start));
        assert_close(&what, &host(keys), &host(k), tolerance);
        assert_close(&what, &host(values), &host(v), tolerance);
        caches = [found, expected];
    }
}

pub(super) fn attention_is_its_definition(device: &Device) {
    let plain = AttentionSpec {
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 8,
        causal: true,
        window: None,
        quiet_softmax: false,
        norm_epsilon: None,
        format: CacheFormat::F32,
    };
    attention_agrees(device, plain, &[1], false, false);
    attention_agrees(device, plain, &[5, 1, 1, 3], false, true);
    attention_agrees(device, AttentionSpec { window: Some(3), ..plain }, &[6, 1, 2], true, true);
    attention_agrees(device, AttentionSpec { causal: false, n_kv_heads: 4, ..plain }, &[7], true, false);
    let full = AttentionSpec { quiet_softmax: true, norm_epsilon: Some(1e-5), n_kv_heads: 1, d_head: 40, ..plain };
    attention_agrees(device, full, &[9, 1, 40, 1], true, true);
    for format in [CacheFormat::Bits8, CacheFormat::Bits4] {
        attention_agrees(device, AttentionSpec { format, ..plain }, &[4, 1, 6], false, true);
        attention_agrees(device, AttentionSpec { format, d_head: 24, ..full }, &[1, 2, 17], true, true);
    }
}

/// What follows an attention as a backend runs it, against its projections, for widths with and without an odd part.
pub(super) fn feed_forwards_are_their_projections(device: &Device) {
    for (codec, rotation, [heads, model, inner]) in [
        ("lapped:2:beam=1", Some(3), [40, 24, 48]),
        ("lapped:3:beam=1", Some(3), [16, 64, 86]),
        ("trellis:2:window=8", Some(5), [32, 32, 106]),
        ("uniform:4", None, [24, 40, 56]),
    ] {
        let weight = |[from, to]: [usize; 2], seed: u64| {
            let packed = Case { rotation, seed, ..Case::new(codec, to, from) }.packed();
            (PatternTensors::new(&packed, device).unwrap().with_arithmetic(Arithmetic::F32), None)
        };
        let biased = |shape: [usize; 2], seed| (weight(shape, seed).0, Some(vector(shape[1], seed, device)));
        for rows in [1, 3] {
            let tensor = |width: usize, seed| {
                let values = gaussian(2 * rows * width, seed);
                Tensor::<3>::from_data(TensorData::new(values, [2, rows, width]), device)
            };
            let (x, residual) = (tensor(heads, 4), tensor(model, 5));
            let rms = || NormTensors::rms(vector(model, 8, device), 1e-5);
            let layer = || NormTensors::layer(vector(model, 9, device), Some(vector(model, 6, device)), 1e-5);
            let gated = FeedForwardTensors {
                output: ProjectionTensors::new([weight([heads, model], 1)]).with_residual(residual.clone()),
                inner: ProjectionTensors::new([weight([model, inner], 2), weight([model, inner], 3)])
                    .with_norm(rms())
                    .with_activation(Activation::GatedSilu),
                down: ProjectionTensors::new([weight([inner, model], 4)]),
            };
            let plain = FeedForwardTensors {
                output: ProjectionTensors::new([biased([heads, model], 1)])
                    .with_residual(residual)
                    .with_post_norm(layer()),
                inner: ProjectionTensors::new([biased([model, inner], 2)]).with_activation(Activation::GeluTanh),
                down: ProjectionTensors::new([biased([inner, model], 4)]).with_post_norm(layer()),
            };
            for with in [gated, plain] {
                let parts = definition::feed_forward::<Dispatch>(x.clone().into_dispatch(), with.clone());
                let (found, expected) = (feed_forward(x.clone(), with), Tensor::<3>::from_dispatch(parts));
                assert_eq!(found.dims(), expected.dims(), "{codec}");
                assert_close(codec, &host(found), &host(expected), 2e-5);
            }
        }
    }
}

/// Gradients of a projection and an attention reach the inputs, the norms, the scales and the bias, and are those of
/// the parts.
#[cfg(feature = "autodiff")]
pub(super) fn steps_have_gradients(device: &Device) {
    let tolerance = (8.0 * product_epsilon(device) as f32).max(1e-4);
    let device = &device.clone().autodiff();
    let weight = PatternTensors::new(&Case::new("lapped:2:beam=1", 24, 40).packed(), device).unwrap();
    let weight = PatternTensors { scales: weight.scales.require_grad(), ..weight };
    let x = Tensor::<3>::random([1, 3, 40], burn::tensor::Distribution::Default, device).require_grad();
    let (gamma, bias) = (vector(40, 1, device).require_grad(), vector(24, 2, device).require_grad());
    let with = ProjectionTensors::new([(weight.clone(), Some(bias.clone()))]);
    let with = with.with_norm(NormTensors::rms(gamma.clone(), 1e-5)).with_activation(Activation::Gelu);
    let step = project(x.clone(), with);
    let spec = AttentionSpec {
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 8,
        causal: true,
        window: None,
        quiet_softmax: false,
        norm_epsilon: None,
        format: CacheFormat::F32,
    };
    let cache = AttentionCache::new(&spec, 1, 3, device);
    let (out, _) = attend(&spec, step, AttentionInputs::default(), cache, 0);
    let gradients = out.square().sum().backward();

    let power = x.clone().square().mean_dim(2).add_scalar(1e-5).sqrt();
    let normed = x.clone() / power * gamma.clone().reshape([1, 1, 40]);
    let parts = burn::tensor::activation::gelu(weight.linear(normed) + bias.clone().reshape([1, 1, 24]));
    let part = |at: usize| parts.clone().narrow(2, 8 * at, 8);
    let scores = part(0).matmul(part(1).transpose()) / 8f32.sqrt();
    let mask = Tensor::<2, Bool>::tril_mask([3, 3], 0, device).reshape([1, 3, 3]);
    let weights = burn::tensor::activation::softmax(scores.mask_fill(mask, f32::MIN), 2);
    let expected = weights.matmul(part(2)).square().sum().backward();
    macro_rules! compare {
        ($($tensor:expr),+) => {
            $(assert_close(
                stringify!($tensor),
                &host($tensor.grad(&gradients).unwrap()),
                &host($tensor.grad(&expected).unwrap()),
                tolerance,
            );)+
        };
    }
    compare!(x, gamma, bias, weight.scales);
}
