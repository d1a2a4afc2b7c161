//! Attention with shared key heads, rotary positions and a cache, over projections that may be compressed.
//!
//! ```text
//!  query ─▶ project ─▶ heads ─▶ norm ─▶ rotate ───────────▶ q·kᵀ/√d ─▶ masks, softmax ─▶ weights·v ─▶ project
//!  key ───▶ project ─▶ heads ─▶ norm ─▶ rotate ─▶ cache ───────┘
//!  value ─▶ project ─▶ heads ───────────────────▶ cache ─────────────────────────────────────┘
//! ```
//!
//! Norm, rotation and cache are there if they are asked for. All between the projections is one operation of the
//! backend ([`pixel_core::attention`]) without a matrix of scores; [`PIXELAttention::attend`], which returns the
//! weights, and dropout in training take it apart. Key heads are never repeated: the query heads that share one are
//! stacked into one longer query.
//!
//! # Example
//! A text read in one go and token by token gives the same.
//! ```
//! use burn::tensor::{Device, Distribution, Tensor, Tolerance};
//! use pixel_nn::attention::{KeyValueCache, PIXELAttentionConfig, RotaryConfig};
//!
//! let device = Device::flex();
//! let attention = PIXELAttentionConfig::new(64, 8)
//!     .with_n_kv_heads(2)
//!     .with_rotary(Some(RotaryConfig::new()))
//!     .with_causal(true)
//!     .init(&device);
//! let text = Tensor::<3>::random([1, 5, 64], Distribution::Default, &device);
//! let whole = attention.forward(text.clone());
//!
//! let mut cache = KeyValueCache::new();
//! let tokens = text.split(1, 1).into_iter().map(|token| attention.forward_cached(token, &mut cache));
//! let stepwise = Tensor::cat(tokens.collect(), 1);
//! stepwise.into_data().assert_approx_eq::<f32>(&whole.into_data(), Tolerance::default());
//! ```
//!
//! # Limits
//! In [`PIXELAttention::attend`] and under autodiff all scores of a call exist at once, `batch · n_heads · seq_q ·
//! seq_k` numbers. A [window](PIXELAttentionConfig::window) hides keys, and a cache does not become smaller by it. A
//! text padded on its left is turned as if the padding were tokens, which moves all its positions alike and so changes
//! nothing: rotary attention reads differences of positions.

mod block;
mod cache;
mod config;
mod mask;
mod rotary;

pub use block::AttentionBlock;
pub use cache::KeyValueCache;
pub use config::{AttentionConfigError, PIXELAttentionConfig};
pub use pixel_core::attention::CacheFormat;
pub use rotary::{Rotary, RotaryConfig, RotaryScaling};

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::attention::MultiHeadAttention;
use burn::nn::{Dropout, RmsNorm};
use burn::tensor::{Bool, Device, Tensor, assert_shape};
use mask::Masks;

use crate::dense::PixelModule;
use crate::error::LayerError;
use crate::projection::Projection;
use crate::shared_input::SharedInput;
use pixel_core::CodecSpec;
use pixel_core::attention::AttentionSpec;

/// Multi-head attention whose query heads may share key heads: `softmax(q·kᵀ/√d_head)·v` for each head.
///
/// Made by [`PIXELAttentionConfig`], or from Burn's module by [`from_multi_head`](Self::from_multi_head).
///
/// # Sources
/// Vaswani et al., <https://arxiv.org/abs/1706.03762>; Ainslie et al. (shared key heads),
/// <https://arxiv.org/abs/2305.13245>.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct PIXELAttention {
    /// From `d_model` to `n_heads · d_head`.
    pub query: Projection,
    /// From `d_model` to `n_kv_heads · d_head`.
    pub key: Projection,
    /// From `d_model` to `n_kv_heads · d_head`.
    pub value: Projection,
    /// From `n_heads · d_head` to `d_model`.
    pub output: Projection,
    /// The norm of each query head, over `d_head`; queries and keys have one with the same ε, or none.
    pub query_norm: Option<RmsNorm>,
    /// The norm of each key head, over `d_head`.
    pub key_norm: Option<RmsNorm>,
    /// The dropout of attention weights, in training.
    pub dropout: Dropout,
    /// The rotary positions; they have no parameters.
    #[module(skip)]
    pub rotary: Option<Rotary>,
    /// Length of a token's vector.
    pub d_model: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads.
    pub n_kv_heads: usize,
    /// Length of one head.
    pub d_head: usize,
    /// Whether a query sees only keys at or before its own place.
    pub causal: bool,
    /// The number of keys that a query sees at most, its own among them; read where `causal` is set.
    pub window: Option<usize>,
    /// Whether a one is added to the denominator of the softmax.
    pub quiet_softmax: bool,
}

/// What a [`PIXELAttention`] reads: queries, keys, values, and what not to see.
#[derive(Clone, Debug)]
pub struct AttentionInput {
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask_pad: Option<Tensor<2, Bool>>,
    mask_attn: Option<Tensor<3, Bool>>,
}

/// What a [`PIXELAttention`] returns.
#[derive(Clone, Debug)]
pub struct AttentionOutput {
    /// The attention weights, `[batch, n_heads, seq_q, seq_k]`; dropout is applied to them in training, so that rows
    /// need not sum to 1.
    pub weights: Tensor<4>,
    /// The tokens, `[batch, seq_q, d_model]`.
    pub context: Tensor<3>,
}

impl AttentionInput {
    /// Queries from one text, keys and values from another (cross attention).
    ///
    /// # Shapes
    /// - query: `[batch, seq_q, d_model]`
    /// - key, value: `[batch, seq_k, d_model]`
    pub fn new(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Self {
        Self { query, key, value, mask_pad: None, mask_attn: None }
    }

    /// Queries, keys and values from one text, `[batch, seq, d_model]`.
    pub fn self_attn(tokens: Tensor<3>) -> Self {
        Self::new(tokens.clone(), tokens.clone(), tokens)
    }

    /// Hides keys from every query: `[batch, seq_k]`, true = padding.
    pub fn mask_pad(self, mask_pad: Tensor<2, Bool>) -> Self {
        Self { mask_pad: Some(mask_pad), ..self }
    }

    /// Hides keys from single queries: `[batch, seq_q, seq_k]`, true = hidden.
    pub fn mask_attn(self, mask_attn: Tensor<3, Bool>) -> Self {
        Self { mask_attn: Some(mask_attn), ..self }
    }
}

/// Queries, keys and values split into heads, `[batch, heads, seq, d_head]`.
struct Heads {
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
}

impl PIXELAttention {
    /// The attention that computes what Burn's `MultiHeadAttention` does, with the same parameters (and their ids).
    ///
    /// Two things differ. A query from which every key is hidden gets zeros here and the mean of all values there; and
    /// a causal mask need not be passed if [`causal`](Self::causal) is set afterwards.
    pub fn from_multi_head(attention: &MultiHeadAttention) -> Self {
        Self {
            query: attention.query.clone().into(),
            key: attention.key.clone().into(),
            value: attention.value.clone().into(),
            output: attention.output.clone().into(),
            query_norm: None,
            key_norm: None,
            dropout: attention.dropout.clone(),
            rotary: None,
            d_model: attention.d_model,
            n_heads: attention.n_heads,
            n_kv_heads: attention.n_heads,
            d_head: attention.d_k,
            causal: false,
            window: None,
            quiet_softmax: attention.quiet_softmax,
        }
    }

    /// The same attention with its projections as patterns; those that are patterns already stay as they are.
    ///
    /// # Errors
    /// [`LayerError`] as [`PIXELLinear::from_linear`](crate::PIXELLinear::from_linear).
    pub fn compress(&self, codec: &CodecSpec, seed: u64) -> Result<Self, LayerError> {
        let [query, key, value, output] = self.projections().map(|projection| projection.compress(codec, seed));
        Ok(Self { query: query?, key: key?, value: value?, output: output?, ..self.clone() })
    }

    fn projections(&self) -> [&Projection; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }

    /// Attention of a text to itself; [`attend`](Self::attend) takes masks and returns the weights as well, and a
    /// [block](Self::block) adds what a transformer has around it.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq, d_model]`
    /// - output: `[batch, seq, d_model]`
    ///
    /// # Panics
    /// If the last axis is not `d_model`.
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        AttentionBlock::of(self).forward(tokens, None)
    }

    /// Attention of queries to keys. With rotary positions, both texts begin at position 0.
    ///
    /// A query from which every key is hidden has weights of 0, so that its token is the bias of the output projection
    /// (zeros without one), and no gradient flows from it to keys and values.
    ///
    /// # Shapes
    /// - query: `[batch, seq_q, d_model]`
    /// - key, value: `[batch, seq_k, d_model]`
    /// - mask_pad: `[batch, seq_k]`, mask_attn: `[batch, seq_q, seq_k]`
    ///
    /// # Panics
    /// If a shape differs from the above, or if the attention is causal and `seq_q` is not `seq_k`: which key is a
    /// query's own would be a guess.
    pub fn attend(&self, input: AttentionInput) -> AttentionOutput {
        let [batch, seq_q, _] = input.query.dims();
        let [_, seq_k, _] = input.key.dims();
        assert_shape!(input.query, [_, _, self.d_model]);
        assert_shape!(input.key, [batch, _, self.d_model]);
        assert_shape!(input.value, [batch, seq_k, self.d_model]);
        if let Some(mask) = &input.mask_pad {
            assert_shape!(mask, [batch, seq_k]);
        }
        if let Some(mask) = &input.mask_attn {
            assert_shape!(mask, [batch, seq_q, seq_k]);
        }

        let masks = Masks::default().padding(input.mask_pad).attention(input.mask_attn);
        let inputs = [input.query, input.key, input.value].map(SharedInput::new);
        self.attend_shared(inputs.each_ref(), masks)
    }

    /// [`attend`](Self::attend) for inputs of which some may be the same.
    fn attend_shared(&self, inputs: [&SharedInput<3>; 3], mut masks: Masks) -> AttentionOutput {
        let [query, key, _] = inputs.map(SharedInput::get);
        let shape = [query.dims()[1], key.dims()[1]];
        if self.causal {
            assert_eq!(shape[0], shape[1], "causal attention needs as many queries (left) as keys (right)");
            masks = self.hide_by_position(masks, 0, shape, &query.device());
        }
        self.mix(self.heads(inputs, 0), masks)
    }

    /// Causal attention of new tokens to those in `cache` and to themselves; they are added to the cache.
    ///
    /// A text passed in pieces of any length gives what [`forward`](Self::forward) gives for the whole.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq, d_model]`, the tokens at positions `cache.len()..cache.len() + seq`
    /// - output: `[batch, seq, d_model]`
    ///
    /// # Panics
    /// If the attention is not causal (earlier tokens cannot see later ones), if the last axis is not `d_model`, or if
    /// the batch, the number of key heads or their size differ from those of the tokens in `cache`.
    pub fn forward_cached(&self, tokens: Tensor<3>, cache: &mut KeyValueCache) -> Tensor<3> {
        AttentionBlock::of(self).forward_cached(tokens, None, cache)
    }

    /// [`forward_cached`](Self::forward_cached) for texts of unequal length: `mask_pad` is true where a new token is
    /// padding, and the cache remembers that it is. Pad on the left, so that every text's last token is its own.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq, d_model]`
    /// - mask_pad: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`; values at padding have no meaning, but are finite
    ///
    /// # Panics
    /// As `forward_cached` does, and if the shape of `mask_pad` is another.
    pub fn forward_cached_padded(
        &self,
        tokens: Tensor<3>,
        mask_pad: Tensor<2, Bool>,
        cache: &mut KeyValueCache,
    ) -> Tensor<3> {
        AttentionBlock::of(self).forward_cached(tokens, Some(mask_pad), cache)
    }

    /// The attention in a block of a transformer, `x + attention(x)`, to which norms may be added.
    pub fn block(&self) -> AttentionBlock<'_> {
        AttentionBlock::of(self).with_residual()
    }

    /// What the attention is, with a cache that holds numbers as `format` says.
    fn spec(&self, format: CacheFormat) -> AttentionSpec {
        let epsilon = |norm: &Option<RmsNorm>| norm.as_ref().map(|norm| norm.epsilon);
        let norm_epsilon = epsilon(&self.query_norm);
        assert_eq!(norm_epsilon, epsilon(&self.key_norm), "ε of the norms of queries (left) and of keys (right)");
        AttentionSpec {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            d_head: self.d_head,
            causal: self.causal,
            window: self.window.filter(|_| self.causal),
            quiet_softmax: self.quiet_softmax,
            norm_epsilon,
            format,
        }
    }

    /// Hides the keys behind each query, and those before its window.
    fn hide_by_position(&self, masks: Masks, start: usize, shape: [usize; 2], device: &Device) -> Masks {
        let masks = masks.causal(start, shape, device);
        self.window.iter().fold(masks, |masks, &window| masks.window(window, start, shape, device))
    }

    /// Projects and splits into heads; norms and turns queries and keys, whose first token is at position `start`.
    fn heads(&self, [query, key, value]: [&SharedInput<3>; 3], start: usize) -> Heads {
        let place = |heads: Tensor<4>, norm: &Option<RmsNorm>| {
            let heads = norm.iter().fold(heads, |heads, norm| norm.forward(heads));
            self.rotary.iter().fold(heads, |heads, rotary| rotary.rotate(heads, start))
        };
        Heads {
            query: place(self.split(self.query.forward_shared(query), self.n_heads), &self.query_norm),
            key: place(self.split(self.key.forward_shared(key), self.n_kv_heads), &self.key_norm),
            value: self.split(self.value.forward_shared(value), self.n_kv_heads),
        }
    }

    /// `[batch, seq, heads · d_head]` as `[batch, heads, seq, d_head]`.
    fn split(&self, tokens: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, seq, _] = tokens.dims();
        tokens.reshape([batch, seq, heads, self.d_head]).swap_dims(1, 2)
    }

    /// Weighs the values by the softmax of the scores, and projects them back.
    ///
    /// The `n_heads / n_kv_heads` queries of a key head follow one another in memory, so they are multiplied as one
    /// query of as many times the length.
    fn mix(&self, heads: Heads, masks: Masks) -> AttentionOutput {
        let Heads { query, key, value } = heads;
        let [batch, _, seq_q, _] = query.dims();
        let [_, _, seq_k, _] = key.dims();
        let stacked = self.n_heads / self.n_kv_heads * seq_q;

        // Queries are scaled before the product, which a narrow type would otherwise overflow sooner.
        let query = query.div_scalar((self.d_head as f64).sqrt());
        let query = query.reshape([batch, self.n_kv_heads, stacked, self.d_head]);
        let scores = query.matmul(key.transpose()).reshape([batch, self.n_heads, seq_q, seq_k]);
        let weights = self.dropout.forward(masks.softmax(scores, self.quiet_softmax));

        let context = weights.clone().reshape([batch, self.n_kv_heads, stacked, seq_k]).matmul(value);
        let context = context.reshape([batch, self.n_heads, seq_q, self.d_head]).swap_dims(1, 2);
        let context = self.output.forward(context.reshape([batch, seq_q, self.n_heads * self.d_head]));
        AttentionOutput { weights, context }
    }
}

impl PixelModule for PIXELAttention {
    type Dense = Self;

    fn to_dense(&self) -> Self {
        let [query, key, value, output] = self.projections().map(Projection::to_dense);
        Self { query, key, value, output, ..self.clone() }
    }

    fn bits_per_weight(&self) -> f64 {
        let weights = self.projections().map(|p| p.d_input() * p.d_output()).iter().sum::<usize>();
        8.0 * self.stored_bytes() as f64 / weights as f64
    }

    fn stored_bytes(&self) -> usize {
        self.projections().map(Projection::stored_bytes).iter().sum()
    }
}

impl ModuleDisplay for PIXELAttention {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let content = content
            .add("d_model", &self.d_model)
            .add("n_heads", &self.n_heads)
            .add("n_kv_heads", &self.n_kv_heads)
            .add("d_head", &self.d_head)
            .add("causal", &self.causal);
        // What most attentions lack is shown where it is there.
        let content = self.rotary.iter().fold(content, |content, rotary| content.add("rotary_theta", &rotary.theta()));
        let content = self.window.iter().fold(content, |content, window| content.add("window", window));
        let content = self.query_norm.iter().fold(content, |content, norm| content.add("qk_norm", &norm.epsilon));
        content.add("dropout", &self.dropout.prob).add("quiet_softmax", &self.quiet_softmax).optional()
    }
}
