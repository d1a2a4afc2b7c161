//! The attention in plain loops over f64.

use super::*;

pub(crate) fn dense(projection: &Projection) -> &burn::nn::Linear {
    match projection {
        Projection::Dense(linear) => linear,
        other => panic!("a dense projection expected, got {other}"),
    }
}

/// `x·W + b` by loops, `weight` `[d_input, d_output]`.
#[derive(Clone)]
pub(crate) struct Affine {
    pub(crate) weight: Vec<f64>,
    pub(crate) bias: Option<Vec<f64>>,
    d_output: usize,
}

impl Affine {
    pub(crate) fn of(projection: &Projection) -> Self {
        let linear = dense(projection);
        let bias = linear.bias.as_ref().map(|bias| floats(bias.val()));
        Self { weight: floats(linear.weight.val()), bias, d_output: projection.d_output() }
    }

    pub(crate) fn apply(&self, token: &[f64]) -> Vec<f64> {
        let column = |j: usize| -> f64 {
            let sum: f64 = token.iter().enumerate().map(|(i, x)| x * self.weight[i * self.d_output + j]).sum();
            sum + self.bias.as_ref().map_or(0.0, |bias| bias[j])
        };
        (0..self.d_output).map(column).collect()
    }
}

/// The attention of one query after the other, in `f64`.
#[derive(Clone)]
pub(crate) struct Reference {
    pub(crate) query: Affine,
    pub(crate) key: Affine,
    pub(crate) value: Affine,
    pub(crate) output: Affine,
    pub(crate) query_gain: Option<Vec<f64>>,
    pub(crate) key_gain: Option<Vec<f64>>,
    pub(crate) config: PIXELAttentionConfig,
}

/// A text: tokens of one batch after the other, each `d_model` long.
pub(crate) struct Text<'a> {
    pub(crate) tokens: &'a [f64],
    pub(crate) batch: usize,
}

impl Reference {
    pub(crate) fn of(attention: &PIXELAttention, config: &PIXELAttentionConfig) -> Self {
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
    pub(crate) fn forward(&self, text: &Text) -> Vec<f64> {
        self.attend(text, text, text, &|_, _, _| false).0
    }

    /// Tokens and weights; `hidden(batch, query, key)` comes on top of causality.
    pub(crate) fn attend(
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
pub(crate) fn scaled(frequency: f64, scaling: &RotaryScaling) -> f64 {
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
