//! The attention against plain loops in `f64`, against itself in pieces, and against Burn's.

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

/// Roundings of one chain of sums that the tolerance allows for: the products, the exponential, the norm.
const ROUNDINGS: f64 = 16.0;

/// A Llama 3 scaling all three cases of which a head of 8 meets if θ is 40: its pairs turn 10.2, 4.05, 1.61 and 0.64
/// times over the original length.
const LLAMA3: RotaryScaling =
    RotaryScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };

/// The devices of the features at hand.
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

fn dense(projection: &Projection) -> &burn::nn::Linear {
    match projection {
        Projection::Dense(linear) => linear,
        other => panic!("a dense projection expected, got {other}"),
    }
}

/// `x·W + b` by loops, `weight` `[d_input, d_output]`.
#[derive(Clone)]
struct Affine {
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
    d_output: usize,
}

impl Affine {
    fn of(projection: &Projection) -> Self {
        let linear = dense(projection);
        let bias = linear.bias.as_ref().map(|bias| floats(bias.val()));
        Self { weight: floats(linear.weight.val()), bias, d_output: projection.d_output() }
    }

    fn apply(&self, token: &[f64]) -> Vec<f64> {
        let column = |j: usize| -> f64 {
            let sum: f64 = token.iter().enumerate().map(|(i, x)| x * self.weight[i * self.d_output + j]).sum();
            sum + self.bias.as_ref().map_or(0.0, |bias| bias[j])
        };
        (0..self.d_output).map(column).collect()
    }
}

/// The attention of one query after the other, in `f64`.
#[derive(Clone)]
struct Reference {
    query: Affine,
    key: Affine,
    value: Affine,
    output: Affine,
    query_gain: Option<Vec<f64>>,
    key_gain: Option<Vec<f64>>,
    config: PIXELAttentionConfig,
}

/// A text: tokens of one batch after the other, each `d_model` long.
struct Text<'a> {
    tokens: &'a [f64],
    batch: usize,
}

impl Reference {
    fn of(attention: &PIXELAttention, config: &PIXELAttentionConfig) -> Self {
        let gain = |norm: &Option<RmsNorm>| norm.as_ref().map(|norm| floats(norm.gamma.val()));
        Self {
            query: Affine::of(&attention.query),
            key: Affine::of(&attention.key),
            value: Affine::of(&attention.value),
            output: Affine::of(&attention.output),
            query_gain: gain(&attention.query_norm),
            key_gain: gain(&attention.key_norm),
            config: config.clone(),
        }
    }

    /// The tokens of a text to itself, nothing hidden but the future.
    fn forward(&self, text: &Text) -> Vec<f64> {
        self.attend(text, text, text, &|_, _, _| false).0
    }

    /// Tokens and weights; `hidden(batch, query, key)` comes on top of causality.
    fn attend(
        &self,
        queries: &Text,
        keys: &Text,
        values: &Text,
        hidden: &dyn Fn(usize, usize, usize) -> bool,
    ) -> (Vec<f64>, Vec<f64>) {
        let config = &self.config;
        let (d_model, d_head) = (config.d_model, config.head_size());
        let (seq_q, seq_k) = (queries.tokens.len() / queries.batch / d_model, keys.tokens.len() / keys.batch / d_model);
        let token = |text: &Text, seq: usize, b: usize, t: usize| {
            let start = (b * seq + t) * d_model;
            text.tokens[start..start + d_model].to_vec()
        };
        let mut context = Vec::new();
        let mut weights = vec![0.0; queries.batch * config.n_heads * seq_q * seq_k];
        for b in 0..queries.batch {
            for i in 0..seq_q {
                let query = self.query.apply(&token(queries, seq_q, b, i));
                let mut heads = vec![0.0; config.n_heads * d_head];
                for h in 0..config.n_heads {
                    let shared = h / (config.n_heads / config.n_kv_heads);
                    let query = self.place(&query[h * d_head..][..d_head], &self.query_gain, i);
                    let mut exponentials = vec![0.0; seq_k];
                    for (j, exponential) in exponentials.iter_mut().enumerate() {
                        if !(hidden(b, i, j) || config.causal && j > i) {
                            let key = self.key.apply(&token(keys, seq_k, b, j));
                            let key = self.place(&key[shared * d_head..][..d_head], &self.key_gain, j);
                            let score: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                            *exponential = (score / (d_head as f64).sqrt()).exp();
                        }
                    }
                    let quiet = if config.quiet_softmax { 1.0 } else { 0.0 };
                    let sum = exponentials.iter().sum::<f64>() + quiet;
                    for (j, exponential) in exponentials.iter().enumerate().filter(|(_, e)| **e > 0.0) {
                        let weight = exponential / sum;
                        weights[((b * config.n_heads + h) * seq_q + i) * seq_k + j] = weight;
                        let value = self.value.apply(&token(values, seq_k, b, j));
                        for (out, value) in heads[h * d_head..].iter_mut().zip(&value[shared * d_head..][..d_head]) {
                            *out += weight * value;
                        }
                    }
                }
                context.extend(self.output.apply(&heads));
            }
        }
        (context, weights)
    }

    /// A head normed and turned to its position.
    fn place(&self, head: &[f64], gain: &Option<Vec<f64>>, position: usize) -> Vec<f64> {
        let mut head = head.to_vec();
        if let (Some(gain), Some(epsilon)) = (gain, self.config.qk_norm) {
            let mean_square = head.iter().map(|x| x * x).sum::<f64>() / head.len() as f64;
            for (x, gain) in head.iter_mut().zip(gain) {
                *x *= gain / (mean_square + epsilon).sqrt();
            }
        }
        if let Some(rotary) = &self.config.rotary {
            let half = head.len() / 2;
            for i in 0..half {
                let frequency = 1.0 / rotary.theta.powf(2.0 * i as f64 / head.len() as f64);
                let (sin, cos) = (position as f64 * scaled(frequency, &rotary.scaling)).sin_cos();
                let (x, y) = (head[i], head[i + half]);
                (head[i], head[i + half]) = (x * cos - y * sin, y * cos + x * sin);
            }
        }
        head
    }
}

/// The frequency as Meta's `apply_scaling` computes it, in wavelengths.
fn scaled(frequency: f64, scaling: &RotaryScaling) -> f64 {
    match *scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear { factor } => frequency / factor,
        RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let (wavelength, length) = (2.0 * std::f64::consts::PI / frequency, original_max_positions as f64);
            if wavelength < length / high_freq_factor {
                frequency
            } else if wavelength > length / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// Compares with `k·ε·√n` of the largest number, where `n` is the length of all sums that a result passes through.
#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], sums: usize, what: &str) {
    let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
    let tolerance = ROUNDINGS * f64::from(f32::EPSILON) * (sums as f64).sqrt() * largest;
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        // A NaN fails this as well.
        assert!((found - expected).abs() <= tolerance, "{what} {i}: {found}, {expected} expected within {tolerance:e}");
    }
}

/// The length of all sums between a token and its result.
fn sums(config: &PIXELAttentionConfig, seq_k: usize) -> usize {
    config.d_model + config.head_size() + seq_k + config.n_heads * config.head_size()
}

/// Every choice that the attention has, over small shapes.
fn configs() -> impl Strategy<Value = PIXELAttentionConfig> {
    let shape = (1..=12usize, 1..=3usize, 1..=3usize, 1..=4usize);
    let scaling = prop_oneof![Just(RotaryScaling::None), Just(RotaryScaling::Linear { factor: 4.0 }), Just(LLAMA3)];
    let rotary = proptest::option::of((prop_oneof![Just(10_000.0), Just(40.0)], scaling));
    let choices = (any::<[bool; 6]>(), proptest::option::of(Just(1e-5)));
    (shape, rotary, choices).prop_map(|((d_model, n_kv_heads, group, half), rotary, (choices, qk_norm))| {
        let [query, key, value, output, causal, quiet] = choices;
        PIXELAttentionConfig::new(d_model, n_kv_heads * group)
            .with_n_kv_heads(n_kv_heads)
            .with_d_head(Some(2 * half))
            .with_rotary(rotary.map(|(theta, scaling)| RotaryConfig { theta, scaling }))
            .with_query_bias(query)
            .with_key_bias(key)
            .with_value_bias(value)
            .with_output_bias(output)
            .with_causal(causal)
            .with_quiet_softmax(quiet)
            .with_qk_norm(qk_norm)
    })
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

proptest! {
    // The same cases every time: bounds on rounding hold for most inputs, not all.
    #![proptest_config(ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(96)
    })]

    #[test]
    fn any_attention_matches_plain_loops(
        config in configs(), batch in 1..=3usize, seq_q in 1..=9usize, seq_k in 1..=9usize, seed: u64,
    ) {
        let seq_k = if config.causal { seq_q } else { seq_k };
        for device in host_devices() {
            matches_reference(&config, [batch, seq_q, seq_k], seed, &device);
        }
    }

    #[test]
    fn any_pieces_give_the_whole(
        config in configs(), batch in 1..=3usize, pieces in proptest::collection::vec(1..=4usize, 1..=6usize),
    ) {
        for device in host_devices() {
            pieces_match_the_whole(&config.clone().with_causal(true), batch, pieces.as_slice(), &device);
        }
    }
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

#[test]
fn every_backend_matches_plain_loops() {
    let multi_head = PIXELAttentionConfig::new(8, 2).with_quiet_softmax(true);
    for device in devices() {
        matches_reference(&grouped(), [2, 5, 5], 1, &device);
        matches_reference(&multi_head, [2, 3, 5], 2, &device);
        pieces_match_the_whole(&grouped(), 2, &[3, 1, 2], &device);
    }
}

#[test]
fn a_long_prompt_and_its_decoding_cross_the_windows_of_the_tables() {
    // Tables cover 256 positions: the last piece begins in one window and ends in the next.
    let config = grouped().with_d_head(Some(2)).with_rotary(Some(RotaryConfig::new()));
    pieces_match_the_whole(&config, 1, &[250, 1, 9, 1], &Device::flex());
}

#[test]
fn a_query_without_keys_gives_the_output_bias_on_every_backend() {
    let config = PIXELAttentionConfig::new(4, 2);
    for device in devices() {
        for quiet in [false, true] {
            let attention = drawn(&config.clone().with_quiet_softmax(quiet), &device);
            let text = Numbers(5).tensor([2, 3, 4], &device);
            let padding = Tensor::<2, Bool>::from_data([[true, true, true], [false, false, false]], &device);
            let found = attention.attend(AttentionInput::self_attn(text).mask_pad(padding));
            assert!(floats(found.weights)[..2 * 3 * 3].iter().all(|&weight| weight == 0.0));
            let bias = floats(dense(&attention.output).bias.as_ref().unwrap().val());
            let context = floats(found.context);
            assert!(context[..12].chunks(4).all(|token| token == bias), "{context:?}");
            assert!(context[12..].chunks(4).all(|token| token != bias && token.iter().all(|x| x.is_finite())));
        }
    }
}

#[test]
fn left_padding_changes_no_text_of_a_batch() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let mut numbers = Numbers(11);
    let [short, long] = [2, 5].map(|seq| numbers.tensor([1, seq, 12], &device));
    let next = numbers.tensor([2, 1, 12], &device);
    let alone = |text: &Tensor<3>, row: usize| {
        let text = Tensor::cat(vec![text.clone(), next.clone().narrow(0, row, 1)], 1);
        let [_, seq, _] = text.dims();
        floats(attention.forward(text).narrow(1, seq - 3, 3))
    };
    // Three tokens of padding before the short text; what stands there must not matter.
    let padding = numbers.tensor([1, 3, 12], &device) * 100.0;
    let padded = Tensor::cat(vec![padding, short.clone()], 1);
    let mask = [[true, true, true, false, false], [false; 5]];
    let mut cache = KeyValueCache::new();
    let batch = Tensor::cat(vec![padded, long.clone()], 0);
    let prompt = attention.forward_cached_padded(batch, Tensor::from_data(mask, &device), &mut cache);
    let step = attention.forward_cached(next.clone(), &mut cache);
    let together = Tensor::cat(vec![prompt, step], 1);

    assert!(floats(together.clone()).iter().all(|x| x.is_finite()));
    for (row, text) in [&short, &long].into_iter().enumerate() {
        let found = floats(together.clone().narrow(0, row, 1).narrow(1, 3, 3));
        assert_close(&found, &alone(text, row), sums(&grouped(), 6), "padded");
    }
}

#[test]
fn a_truncated_cache_takes_another_continuation() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let mut numbers = Numbers(13);
    let [prompt, draft, chosen] = [3, 2, 2].map(|seq| numbers.tensor([2, seq, 12], &device));
    let mut cache = KeyValueCache::with_capacity(16);
    attention.forward_cached(prompt.clone(), &mut cache);
    attention.forward_cached(draft, &mut cache);
    cache.truncate(3);
    let found = attention.forward_cached(chosen.clone(), &mut cache);
    let whole = attention.forward(Tensor::cat(vec![prompt, chosen], 1));
    assert_close(&floats(found), &floats(whole.narrow(1, 3, 2)), sums(&grouped(), 5), "continued");

    cache.clear();
    let other = numbers.tensor([1, 2, 12], &device);
    let found = attention.forward_cached(other.clone(), &mut cache);
    assert_close(&floats(found), &floats(attention.forward(other)), sums(&grouped(), 2), "cleared");
}

/// Burn's module and ours with the same parameters, in the same call.
fn matches_burn(burn: &MultiHeadAttention, input: [Tensor<3>; 3], pad: Tensor<2, Bool>, hidden: Tensor<3, Bool>) {
    let [query, key, value] = input;
    let [_, seq_k, d_model] = key.dims();
    let theirs = MhaInput::new(query.clone(), key.clone(), value.clone());
    let theirs = burn.forward(theirs.mask_pad(pad.clone()).mask_attn(hidden.clone()));
    let ours = AttentionInput::new(query, key, value).mask_pad(pad).mask_attn(hidden);
    let ours = PIXELAttention::from_multi_head(burn).attend(ours);
    assert_close(&floats(ours.weights), &floats(theirs.weights), 3 * d_model + seq_k, "weight");
    assert_close(&floats(ours.context), &floats(theirs.context), 3 * d_model + seq_k, "context");
}

#[test]
fn burns_attention_converts_to_an_equal_one() {
    for device in devices() {
        for quiet in [false, true] {
            let config = MultiHeadAttentionConfig::new(12, 3).with_quiet_softmax(quiet).with_key_bias(false);
            let burn = config.init(&device).map(&mut Numbers(7));
            let mut numbers = Numbers(17);
            let text = numbers.tensor([2, 4, 12], &device);
            let pad = [[false, false, false, true], [false; 4]];
            let causal = generate_autoregressive_mask(2, 4, &device);
            matches_burn(&burn, [0; 3].map(|_| text.clone()), Tensor::from_data(pad, &device), causal);

            // Cross attention; key 0 stays visible, since a row without keys is where the two differ.
            let [key, value] = [0; 2].map(|_| numbers.tensor([2, 5, 12], &device));
            let pad = [[false, true, false, false, true], [false, false, true, false, false]];
            let hidden = numbers.mask([2, 4, 5], &device).slice_fill(burn::tensor::s![.., .., 0], false);
            matches_burn(&burn, [text, key, value], Tensor::from_data(pad, &device), hidden);
        }
    }
}

#[test]
fn a_converted_attention_can_be_made_causal() {
    let device = Device::flex();
    let burn = MultiHeadAttentionConfig::new(8, 2).init(&device);
    let text = Numbers(19).tensor([1, 4, 8], &device);
    let masked = MhaInput::self_attn(text.clone()).mask_attn(generate_autoregressive_mask(1, 4, &device));
    let expected = burn.forward(masked).context;
    let ours = PIXELAttention { causal: true, ..PIXELAttention::from_multi_head(&burn) };
    assert_close(&floats(ours.forward(text)), &floats(expected), 28, "causal");
}

#[cfg(feature = "autodiff")]
mod gradients {
    use super::*;

    /// The derivative of the loss by the number that `number` points at, by a central difference in `f64`: of order h²
    /// exact, and with h = 10⁻⁴ so are the roundings, 10⁻¹⁶/h.
    fn difference(
        reference: &Reference,
        tokens: &[f64],
        batch: usize,
        factors: &[f64],
        number: &dyn for<'a> Fn(&'a mut Reference, &'a mut [f64]) -> &'a mut f64,
    ) -> f64 {
        let loss = |step: f64| -> f64 {
            let (mut reference, mut tokens) = (reference.clone(), tokens.to_vec());
            *number(&mut reference, &mut tokens) += step;
            reference.forward(&Text { tokens: &tokens, batch }).iter().zip(factors).map(|(x, f)| x * f).sum()
        };
        (loss(1e-4) - loss(-1e-4)) / 2e-4
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loops() {
        let config = PIXELAttentionConfig::new(3, 4)
            .with_n_kv_heads(2)
            .with_d_head(Some(4))
            .with_rotary(Some(RotaryConfig::new().with_theta(40.0)))
            .with_qk_norm(Some(1e-5))
            .with_dropout(0.0)
            .with_causal(true);
        let attention = drawn(&config, &Device::flex()).train();
        let device = Device::flex().autodiff();
        let text = Numbers(23).tensor([2, 3, 3], &device).require_grad();
        let factors = Numbers(29).tensor([2, 3, 3], &device);
        let grads = (attention.forward(text.clone()) * factors.clone()).sum().backward();

        let reference = Reference::of(&attention, &config);
        let (tokens, factors) = (floats(text.clone().inner()), floats(factors.inner()));
        let check = |what: &str, found: Vec<f64>, number: &dyn Fn(usize) -> f64| {
            let expected: Vec<f64> = (0..found.len()).map(number).collect();
            assert!(expected.iter().any(|slope| slope.abs() > 0.01), "{what}: nothing to compare, {expected:?}");
            assert_close(&found, &expected, 8 * sums(&config, 3), what);
        };
        macro_rules! check {
            ($what:literal, $grad:expr, |$reference:ident, $tokens:ident, $i:ident| $number:expr) => {
                check($what, floats($grad.expect($what)), &|$i| {
                    difference(&reference, &tokens, 2, &factors, &|$reference, $tokens| {
                        let _ = (&$reference, &$tokens);
                        &mut $number[$i]
                    })
                });
            };
        }
        check!("tokens", text.grad(&grads), |r, t, i| t);
        check!("query", dense(&attention.query).weight.grad(&grads), |r, t, i| r.query.weight);
        check!("key", dense(&attention.key).weight.grad(&grads), |r, t, i| r.key.weight);
        check!("value", dense(&attention.value).weight.grad(&grads), |r, t, i| r.value.weight);
        check!("output", dense(&attention.output).weight.grad(&grads), |r, t, i| r.output.weight);
        let gain = |norm: &Option<RmsNorm>| norm.as_ref().and_then(|norm| norm.gamma.grad(&grads));
        check!("query gain", gain(&attention.query_norm), |r, t, i| r.query_gain.as_mut().unwrap());
        check!("key gain", gain(&attention.key_norm), |r, t, i| r.key_gain.as_mut().unwrap());
    }

    #[test]
    fn a_query_without_keys_sends_back_zeros_and_no_nan() {
        let device = Device::flex().autodiff();
        for quiet in [false, true] {
            let attention =
                drawn(&PIXELAttentionConfig::new(4, 2).with_quiet_softmax(quiet).with_dropout(0.0), &device);
            let text = Numbers(31).tensor([1, 2, 4], &device).require_grad();
            let padding = Tensor::<2, Bool>::from_data([[true, true]], &device);
            let grads =
                attention.attend(AttentionInput::self_attn(text.clone()).mask_pad(padding)).context.sum().backward();
            assert_eq!(floats(text.grad(&grads).unwrap()), [0.0; 8]);
        }
    }

    #[test]
    fn dropout_acts_on_the_weights_and_in_training_only() {
        let device = Device::flex().autodiff();
        let attention = PIXELAttentionConfig::new(4, 2).with_dropout(0.5).init(&device);
        // Tokens alike have scores alike: weights of 1/4, doubled or dropped.
        let text = Tensor::<3>::ones([4, 4, 4], &device);
        let near = |found: &[f64], allowed: &[f64]| {
            found.iter().all(|found| allowed.iter().any(|allowed| (found - allowed).abs() < 1e-6))
        };
        let weights = floats(attention.attend(AttentionInput::self_attn(text.clone())).weights);
        assert!(near(&weights, &[0.0, 0.5]) && !near(&weights, &[0.5]) && !near(&weights, &[0.0]), "{weights:?}");
        let weights = floats(attention.valid().attend(AttentionInput::self_attn(text.inner())).weights);
        assert!(near(&weights, &[0.25]), "{weights:?}");
    }

    #[test]
    fn positions_follow_the_module_through_training_and_back() {
        let device = Device::flex();
        let attention = drawn(&grouped().with_dropout(0.0), &device);
        let text = Numbers(37).tensor([1, 3, 12], &device);
        let expected = floats(attention.forward(text.clone()));
        let training = attention.train();
        let found = floats(training.forward(Tensor::from_inner(text.clone())));
        assert_close(&found, &expected, sums(&grouped(), 3), "training");
        let valid = training.valid();
        assert_eq!(floats(valid.forward(text.clone())), expected);
        for other in devices() {
            let moved = valid.clone().to_device(&other);
            let found = floats(moved.forward(text.clone().to_device(&other)));
            assert_close(&found, &expected, 2 * sums(&grouped(), 3), "moved");
        }
    }
}

/// Turns every parameter into `f16`.
struct Halve;

impl ModuleMapper for Halve {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(DType::F16))
    }
}

#[test]
fn half_precision_stays_near_single() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let text = Numbers(41).tensor([2, 6, 12], &device);
    let expected = floats(attention.forward(text.clone()));
    let half = attention.map(&mut Halve);
    let found = half.forward(text.clone().cast(DType::F16));
    assert_eq!(found.dtype(), DType::F16);
    let mut cache = KeyValueCache::new();
    let pieces = text.cast(DType::F16).split(2, 1).into_iter().map(|piece| half.forward_cached(piece, &mut cache));
    let pieces = floats(Tensor::cat(pieces.collect(), 1));

    let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
    let tolerance = ROUNDINGS * 2f64.powi(-10) * (sums(&grouped(), 6) as f64).sqrt() * largest;
    let found = floats(found);
    for found in [&found, &pieces] {
        assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() <= tolerance), "{found:?} {expected:?}");
    }
}

#[test]
fn a_record_restores_every_parameter() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let text = Numbers(43).tensor([1, 4, 12], &device);
    let expected = floats(attention.forward(text.clone()));
    let bytes = attention.into_record().into_bytes().unwrap();
    let other = grouped().init(&device);
    assert_ne!(floats(other.forward(text.clone())), expected);
    let read = other.load_record(ModuleRecord::from_bytes(bytes).unwrap());
    assert_eq!(floats(read.forward(text)), expected);
}

#[test]
fn parameters_are_counted() {
    let device = Device::flex();
    // q 12·48 + 48, k 12·16, v 12·16 + 16, o 48·12, two gains of 8.
    assert_eq!(grouped().init(&device).num_params(), 624 + 192 + 208 + 576 + 16);
    assert_eq!(PIXELAttentionConfig::new(8, 2).init(&device).num_params(), 4 * (64 + 8));
}

#[test]
fn display() {
    let device = Device::flex();
    assert_eq!(
        PIXELAttentionConfig::new(8, 2).init(&device).to_string(),
        "PIXELAttention {d_model: 8, n_heads: 2, n_kv_heads: 2, d_head: 4, causal: false, dropout: 0.1, \
         quiet_softmax: false, params: 288}"
    );
    assert_eq!(
        grouped().init(&device).to_string(),
        "PIXELAttention {d_model: 12, n_heads: 6, n_kv_heads: 2, d_head: 8, causal: true, rotary_theta: 40, \
         qk_norm: 0.000001, dropout: 0.1, quiet_softmax: false, params: 1616}"
    );
}

/// An attention, not causal, and a text that does not fit it.
fn refused(shapes: [[usize; 3]; 3], pad: Option<[usize; 2]>, hidden: Option<[usize; 3]>) {
    let device = Device::flex();
    let [query, key, value] = shapes.map(|shape| Tensor::zeros(shape, &device));
    let mut input = AttentionInput::new(query, key, value);
    if let Some(shape) = pad {
        input = input.mask_pad(Tensor::zeros(shape, &device));
    }
    if let Some(shape) = hidden {
        input = input.mask_attn(Tensor::zeros(shape, &device));
    }
    PIXELAttentionConfig::new(8, 2).init(&device).attend(input);
}

#[test]
#[should_panic(expected = "axis 2 expected 8, got 6")]
fn a_query_of_another_width_is_refused() {
    refused([[1, 3, 6], [1, 3, 8], [1, 3, 8]], None, None);
}

#[test]
#[should_panic(expected = "axis 0 expected 2, got 1")]
fn keys_of_another_batch_are_refused() {
    refused([[2, 3, 8], [1, 3, 8], [1, 3, 8]], None, None);
}

#[test]
#[should_panic(expected = "axis 1 expected 4, got 3")]
fn fewer_values_than_keys_are_refused() {
    refused([[1, 3, 8], [1, 4, 8], [1, 3, 8]], None, None);
}

#[test]
#[should_panic(expected = "axis 1 expected 4, got 3")]
fn a_padding_mask_of_the_queries_is_refused() {
    refused([[1, 3, 8], [1, 4, 8], [1, 4, 8]], Some([1, 3]), None);
}

#[test]
#[should_panic(expected = "axis 1 expected 3, got 4")]
fn a_transposed_attention_mask_is_refused() {
    refused([[1, 3, 8], [1, 4, 8], [1, 4, 8]], None, Some([1, 4, 3]));
}

#[test]
#[should_panic(expected = "causal attention needs as many queries")]
fn causal_cross_attention_of_unequal_lengths_is_refused() {
    let device = Device::flex();
    let [query, key] = [3, 4].map(|seq| Tensor::zeros([1, seq, 12], &device));
    grouped().init(&device).attend(AttentionInput::new(query, key.clone(), key));
}

#[test]
#[should_panic(expected = "forward_cached needs causal attention")]
fn a_cache_without_causality_is_refused() {
    let device = Device::flex();
    let attention = PIXELAttentionConfig::new(8, 2).init(&device);
    attention.forward_cached(Tensor::zeros([1, 1, 8], &device), &mut KeyValueCache::new());
}

#[test]
#[should_panic(expected = "axis 0 expected 2, got 1")]
fn a_cache_of_another_batch_is_refused() {
    let device = Device::flex();
    let attention = grouped().init(&device);
    let mut cache = KeyValueCache::new();
    attention.forward_cached(Tensor::zeros([2, 1, 12], &device), &mut cache);
    attention.forward_cached(Tensor::zeros([1, 1, 12], &device), &mut cache);
}

#[test]
#[should_panic(expected = "6 query heads cannot share 4 key heads evenly")]
fn an_invalid_configuration_panics_with_its_error() {
    PIXELAttentionConfig::new(12, 6).with_n_kv_heads(4).init(&Device::flex());
}
