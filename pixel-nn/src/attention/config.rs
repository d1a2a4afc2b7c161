//! What an attention is made of.

use super::PIXELAttention;
use super::rotary::{Rotary, RotaryConfig};
use crate::projection::Projection;
use burn::config::Config;
use burn::module::Initializer;
use burn::nn::{DropoutConfig, LinearConfig, RmsNormConfig};
use burn::tensor::Device;

/// Configuration of a [`PIXELAttention`], made by [`init`](Self::init).
///
/// The defaults are those of Burn's `MultiHeadAttentionConfig`: as many key heads as query heads, biases everywhere, no
/// positions, every query sees every key.
///
/// # Example
/// The attention of Qwen3-0.6B: 16 query heads share 8 key heads of 128, and `d_head` is not `d_model / n_heads`.
/// ```
/// use pixel_nn::attention::{PIXELAttentionConfig, RotaryConfig};
///
/// let config = PIXELAttentionConfig::new(1024, 16)
///     .with_n_kv_heads(8)
///     .with_d_head(Some(128))
///     .with_query_bias(false)
///     .with_key_bias(false)
///     .with_value_bias(false)
///     .with_output_bias(false)
///     .with_qk_norm(Some(1e-6))
///     .with_rotary(Some(RotaryConfig::new().with_theta(1e6)))
///     .with_causal(true);
/// assert_eq!(config.validate(), Ok(()));
/// ```
#[derive(Config, Debug, PartialEq)]
pub struct PIXELAttentionConfig {
    /// Length of a token's vector, at the input and at the output.
    pub d_model: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads, a divisor of `n_heads`: 1 is multi-query attention, `n_heads` multi-head
    /// attention. Query head `h` reads key head `h / (n_heads / n_kv_heads)`.
    ///
    /// Source: Ainslie et al., GQA, <https://arxiv.org/abs/2305.13245>.
    #[config(default = "n_heads")]
    pub n_kv_heads: usize,
    /// Length of one head's query, key and value; `None` is `d_model / n_heads`.
    pub d_head: Option<usize>,
    /// Whether a query sees only keys at or before its own place.
    ///
    /// It belongs to the configuration because a decoder that forgets it in one call sees the future in silence.
    #[config(default = false)]
    pub causal: bool,
    /// The number of keys that a query of a causal attention sees at most, its own among them: the query at position
    /// `p` sees the keys at `p − window + 1..=p`. `None` is no limit.
    ///
    /// Source: Jiang et al., Mistral 7B, <https://arxiv.org/abs/2310.06825>, section 2.
    pub window: Option<usize>,
    /// Rotary positions; `None` leaves the order of the tokens to the caller.
    pub rotary: Option<RotaryConfig>,
    /// The ε of an RMS norm over each head's query and key, before positions are applied; `None` is no norm.
    ///
    /// Source: Yang et al., Qwen3 Technical Report, <https://arxiv.org/abs/2505.09388>, section 2.
    pub qk_norm: Option<f64>,
    /// Probability with which an attention weight is dropped in training, in [0, 1).
    #[config(default = 0.1)]
    pub dropout: f64,
    /// Whether a one is added to the denominator of the softmax, so that a head can attend to nothing.
    ///
    /// Source: Miller, Attention Is Off By One, <https://www.evanmiller.org/attention-is-off-by-one.html>.
    #[config(default = false)]
    pub quiet_softmax: bool,
    /// Whether the query projection has a bias.
    #[config(default = true)]
    pub query_bias: bool,
    /// Whether the key projection has a bias.
    #[config(default = true)]
    pub key_bias: bool,
    /// Whether the value projection has a bias.
    #[config(default = true)]
    pub value_bias: bool,
    /// Whether the output projection has a bias.
    #[config(default = true)]
    pub output_bias: bool,
    /// How weights and biases are drawn; the default is that of Burn's `Linear`, `U(−1/√d_input, 1/√d_input)`.
    #[config(default = "Initializer::KaimingUniform { gain: 1.0 / 3.0f64.sqrt(), fan_out_only: false }")]
    pub initializer: Initializer,
}

/// A [`PIXELAttentionConfig`] that describes no attention.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionConfigError {
    /// A size is zero.
    #[error("{field} is 0; it must be at least 1")]
    Zero {
        /// The field of the configuration.
        field: &'static str,
    },
    /// The model does not split into heads, and no head size is given.
    #[error("d_model = {d_model} does not split into {n_heads} heads; set d_head")]
    ModelNotDivisible {
        /// The length of a token's vector.
        d_model: usize,
        /// The number of query heads.
        n_heads: usize,
    },
    /// The query heads do not split evenly over the key heads.
    #[error("{n_heads} query heads cannot share {n_kv_heads} key heads evenly")]
    HeadsNotDivisible {
        /// The number of query heads.
        n_heads: usize,
        /// The number of key and value heads.
        n_kv_heads: usize,
    },
    /// A window is counted back from a query's own place, which only causal attention has.
    #[error("window = {window} needs causal attention, got causal = false")]
    WindowNotCausal {
        /// The number of keys in sight.
        window: usize,
    },
    /// Rotary positions turn pairs of values, and a value is left over.
    #[error("rotary positions need an even head size, got d_head = {d_head}")]
    OddRotaryHead {
        /// The head size.
        d_head: usize,
    },
    /// A number lies outside its range.
    #[error("{field} = {value} is outside {range}")]
    Range {
        /// The field of the configuration.
        field: &'static str,
        /// The value given.
        value: f64,
        /// The values allowed.
        range: &'static str,
    },
}

impl PIXELAttentionConfig {
    /// The length of one head: `d_head` if it is set, `d_model / n_heads` otherwise.
    ///
    /// # Panics
    /// If `d_head` is not set and `n_heads` is 0.
    pub fn head_size(&self) -> usize {
        self.d_head.unwrap_or_else(|| self.d_model / self.n_heads)
    }

    /// Sets whether all four projections have a bias.
    pub fn with_bias(self, bias: bool) -> Self {
        self.with_query_bias(bias).with_key_bias(bias).with_value_bias(bias).with_output_bias(bias)
    }

    /// Checks that [`init`](Self::init) can build the attention.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), AttentionConfigError> {
        let sizes = [
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("n_kv_heads", self.n_kv_heads),
            ("d_head", self.d_head.unwrap_or(1)),
            ("window", self.window.unwrap_or(1)),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return Err(AttentionConfigError::Zero { field });
        }
        let Self { d_model, n_heads, n_kv_heads, .. } = *self;
        if self.d_head.is_none() && !d_model.is_multiple_of(n_heads) {
            return Err(AttentionConfigError::ModelNotDivisible { d_model, n_heads });
        }
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(AttentionConfigError::HeadsNotDivisible { n_heads, n_kv_heads });
        }
        if let Some(window) = self.window.filter(|_| !self.causal) {
            return Err(AttentionConfigError::WindowNotCausal { window });
        }
        in_range("dropout", self.dropout, (0.0..1.0).contains(&self.dropout), "[0, 1)")?;
        if let Some(epsilon) = self.qk_norm {
            in_range("qk_norm", epsilon, epsilon > 0.0 && epsilon.is_finite(), "(0, ∞)")?;
        }
        self.rotary.as_ref().map_or(Ok(()), |rotary| rotary.validate(self.head_size()))
    }

    /// Makes the attention, its weights drawn by `initializer` on `device`.
    ///
    /// # Panics
    /// If [`validate`](Self::validate) returns an error, with its message.
    pub fn init(&self, device: &Device) -> PIXELAttention {
        if let Err(error) = self.validate() {
            panic!("{error}");
        }
        let d_head = self.head_size();
        let (d_query, d_key) = (self.n_heads * d_head, self.n_kv_heads * d_head);
        let project = |d_input, d_output, bias| {
            let linear =
                LinearConfig::new(d_input, d_output).with_bias(bias).with_initializer(self.initializer.clone());
            Projection::Dense(linear.init(device))
        };
        let norm = || self.qk_norm.map(|epsilon| RmsNormConfig::new(d_head).with_epsilon(epsilon).init(device));

        PIXELAttention {
            query: project(self.d_model, d_query, self.query_bias),
            key: project(self.d_model, d_key, self.key_bias),
            value: project(self.d_model, d_key, self.value_bias),
            output: project(d_query, self.d_model, self.output_bias),
            query_norm: norm(),
            key_norm: norm(),
            dropout: DropoutConfig::new(self.dropout).init(),
            rotary: self.rotary.as_ref().map(|rotary| Rotary::new(rotary, d_head)),
            d_model: self.d_model,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head,
            causal: self.causal,
            window: self.window,
            quiet_softmax: self.quiet_softmax,
        }
    }
}

/// `Ok` if `inside`, else the error that names the field.
pub(super) fn in_range(
    field: &'static str,
    value: f64,
    inside: bool,
    range: &'static str,
) -> Result<(), AttentionConfigError> {
    if inside { Ok(()) } else { Err(AttentionConfigError::Range { field, value, range }) }
}

#[cfg(test)]
mod tests {
    use super::super::rotary::RotaryScaling;
    use super::*;
    use burn::module::Module;

    #[test]
    fn each_rule_has_its_error() {
        let base = PIXELAttentionConfig::new(12, 6);
        let range = |field, value, range| AttentionConfigError::Range { field, value, range };
        let cases = [
            (PIXELAttentionConfig::new(0, 1), AttentionConfigError::Zero { field: "d_model" }),
            (PIXELAttentionConfig::new(12, 0), AttentionConfigError::Zero { field: "n_heads" }),
            (base.clone().with_n_kv_heads(0), AttentionConfigError::Zero { field: "n_kv_heads" }),
            (base.clone().with_d_head(Some(0)), AttentionConfigError::Zero { field: "d_head" }),
            (PIXELAttentionConfig::new(12, 5), AttentionConfigError::ModelNotDivisible { d_model: 12, n_heads: 5 }),
            (base.clone().with_n_kv_heads(4), AttentionConfigError::HeadsNotDivisible { n_heads: 6, n_kv_heads: 4 }),
            (
                base.clone().with_d_head(Some(3)).with_rotary(Some(RotaryConfig::new())),
                AttentionConfigError::OddRotaryHead { d_head: 3 },
            ),
            (base.clone().with_causal(true).with_window(Some(0)), AttentionConfigError::Zero { field: "window" }),
            (base.clone().with_window(Some(3)), AttentionConfigError::WindowNotCausal { window: 3 }),
            (base.clone().with_dropout(1.0), range("dropout", 1.0, "[0, 1)")),
            (base.clone().with_qk_norm(Some(0.0)), range("qk_norm", 0.0, "(0, ∞)")),
            (
                base.clone().with_rotary(Some(RotaryConfig::new().with_theta(-1.0))),
                range("rotary.theta", -1.0, "(0, ∞)"),
            ),
            (
                base.clone().with_rotary(Some(
                    RotaryConfig::new().with_scaling(RotaryScaling::Linear { factor: f64::INFINITY }),
                )),
                range("rotary.scaling.factor", f64::INFINITY, "(0, ∞)"),
            ),
        ];
        for (config, error) in cases {
            assert_eq!(config.validate(), Err(error));
        }
        assert_eq!(base.validate(), Ok(()));
        assert_eq!(PIXELAttentionConfig::new(12, 5).with_d_head(Some(4)).validate(), Ok(()));
    }

    #[test]
    fn biases_go_together() {
        let params = |bias| PIXELAttentionConfig::new(8, 2).with_bias(bias).init(&Device::flex()).num_params();
        assert_eq!((params(true), params(false)), (4 * (64 + 8), 4 * 64));
    }

    #[test]
    fn a_configuration_reads_back_from_json() {
        let scaling = RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let config = PIXELAttentionConfig::new(64, 8)
            .with_n_kv_heads(2)
            .with_rotary(Some(RotaryConfig::new().with_theta(5e5).with_scaling(scaling)));
        let json = config.to_string();
        assert_eq!(PIXELAttentionConfig::load_binary(json.as_bytes()).unwrap(), config);
    }
}
