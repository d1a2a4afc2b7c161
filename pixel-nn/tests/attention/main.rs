//! The attention against plain loops in `f64`, against itself in pieces, and against Burn's.

mod agreement;
mod cache;
mod conversion;
mod module;
mod reference;
mod refusals;
#[cfg(feature = "autodiff")]
mod training;

use approx::abs_diff_eq;
use burn::module::{Module, ModuleMapper, Param};
use burn::nn::RmsNorm;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask};
use burn::store::ModuleRecord;
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use pixel_nn::attention::{
    AttentionInput, KeyValueCache, PIXELAttention, PIXELAttentionConfig, RotaryConfig, RotaryScaling,
};
use pixel_nn::projection::Projection;
use proptest::prelude::*;
use reference::{Reference, Text, dense};

/// Roundings of one chain of sums that the tolerance allows for: the products, the exponential, the norm.
const ROUNDINGS: f64 = 16.0;

/// A Llama 3 scaling all three cases of which a head of 8 meets if θ is 40: its pairs turn 10.2, 4.05, 1.61 and 0.64
/// times over the original length.
const LLAMA3: RotaryScaling =
    RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };

/// The devices of the enabled features.
fn devices() -> Vec<Device> {
    vec![
        Device::flex(),
        #[cfg(feature = "ndarray")]
        ndarray(),
        #[cfg(feature = "wgpu")]
        Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
    ]
}

/// The devices that need no compilation for a new shape.
fn host_devices() -> Vec<Device> {
    vec![
        Device::flex(),
        #[cfg(feature = "ndarray")]
        ndarray(),
    ]
}

#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "a backend that PIXEL supports as long as Burn has it")]
fn ndarray() -> Device {
    Device::ndarray()
}

/// Numbers in [−1, 1) that depend on the seed alone (SplitMix64, Steele et al. 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn tensor<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D> {
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| self.next()).collect();
        Tensor::from_data(TensorData::new(data, shape), device)
    }

    /// True with probability 1/4.
    fn mask<const D: usize>(&mut self, shape: [usize; D], device: &Device) -> Tensor<D, Bool> {
        let data: Vec<bool> = (0..shape.iter().product()).map(|_| self.next() < -0.5).collect();
        Tensor::from_data(TensorData::new(data, shape), device)
    }
}

/// Draws every parameter anew, gains of norms too, so that none can be left out unnoticed.
impl ModuleMapper for Numbers {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| self.tensor(tensor.dims(), &tensor.device()))
    }
}

fn drawn(config: &PIXELAttentionConfig, device: &Device) -> PIXELAttention {
    config.init(device).map(&mut Numbers(7))
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_to_vec().unwrap()
}

fn flags<const D: usize>(tensor: &Tensor<D, Bool>) -> Vec<bool> {
    tensor.to_data().iter::<bool>().collect()
}

/// Compares with `k·ε·√n` of the largest number, where `n` is the length of all sums that a result passes through.
#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], sums: usize, what: &str) {
    let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
    let tolerance = ROUNDINGS * f64::from(f32::EPSILON) * (sums as f64).sqrt() * largest;
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // A NaN fails this as well.
        assert!(
            abs_diff_eq!(found, expected, epsilon = tolerance),
            "{what} {i}: {found}, {expected} expected within {tolerance:e}"
        );
    }
}

/// The length of all sums between a token and its result.
fn sums(config: &PIXELAttentionConfig, seq_k: usize) -> usize {
    config.d_model + config.head_size() + seq_k + config.n_heads * config.head_size()
}

/// Runs one configuration with both masks, and compares tokens and weights with the loops.
fn matches_reference(config: &PIXELAttentionConfig, [batch, seq_q, seq_k]: [usize; 3], seed: u64, device: &Device) {
    let mut numbers = Numbers(seed);
    let attention = drawn(config, device);
    let [query, key, value] = [seq_q, seq_k, seq_k].map(|seq| numbers.tensor([batch, seq, config.d_model], device));
    let (pad, hidden) = (numbers.mask([batch, seq_k], device), numbers.mask([batch, seq_q, seq_k], device));

    let input = AttentionInput::new(query.clone(), key.clone(), value.clone());
    let found = attention.attend(input.mask_pad(pad.clone()).mask_attn(hidden.clone()));

    let (pad, hidden) = (flags(&pad), flags(&hidden));
    let [query, key, value] = [query, key, value].map(floats);
    let [query, key, value] = [&query, &key, &value].map(|tokens| Text { tokens, batch });
    let mask = |b: usize, i: usize, j: usize| pad[b * seq_k + j] || hidden[(b * seq_q + i) * seq_k + j];
    let (context, weights) = Reference::of(&attention, config).attend(&query, &key, &value, &mask);

    assert_eq!(found.weights.dims(), [batch, config.n_heads, seq_q, seq_k]);
    assert_close(&floats(found.weights), &weights, sums(config, seq_k), "weight");
    assert_close(&floats(found.context), &context, sums(config, seq_k), "context");
}

/// Passes a text in pieces and in one go; both must give what the loops give.
fn pieces_match_the_whole(config: &PIXELAttentionConfig, batch: usize, pieces: &[usize], device: &Device) {
    let seq = pieces.iter().sum();
    let attention = drawn(config, device);
    let text = Numbers(3).tensor([batch, seq, config.d_model], device);
    let mut cache = KeyValueCache::new();
    let mut found = Vec::new();
    for &piece in pieces {
        let tokens = text.clone().narrow(1, cache.len(), piece);
        found.push(attention.forward_cached(tokens, &mut cache));
    }
    assert_eq!(cache.len(), seq);

    let tokens = floats(text.clone());
    let expected = Reference::of(&attention, config).forward(&Text { tokens: &tokens, batch });
    assert_close(&floats(Tensor::cat(found, 1)), &expected, sums(config, seq), "in pieces");
    assert_close(&floats(attention.forward(text)), &expected, sums(config, seq), "whole");
}

/// Grouped heads, all norms and positions: what a fault in any part would move.
fn grouped() -> PIXELAttentionConfig {
    PIXELAttentionConfig::new(12, 6)
        .with_n_kv_heads(2)
        .with_d_head(Some(8))
        .with_key_bias(false)
        .with_output_bias(false)
        .with_rotary(Some(RotaryConfig::new().with_theta(40.0).with_scaling(LLAMA3)))
        .with_qk_norm(Some(1e-6))
        .with_causal(true)
}
