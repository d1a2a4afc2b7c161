//! Decoders of the Llama family: Llama, Mistral, Qwen2, Qwen3.
//!
//! ```text
//!  tokens ─▶ embedding ─▶ [ + attention(norm) ─▶ + mlp(norm) ] × layers ─▶ norm ─▶ head ─▶ logits
//! ```

use crate::config::{LlamaConfig, LlamaFamily};
use crate::error::ModelError;
use crate::weights::{LinearSize, TokenEmbedding, UnreadReason, WeightLoader, layer_of, projections};
use burn::module::Module;
use burn::nn::{DropoutConfig, RmsNorm};
use burn::tensor::{DType, Int, Tensor, s};
use pixel_nn::attention::{AttentionBlock, CacheFormat, KeyValueCache, PIXELAttention, Rotary};
use pixel_nn::{Activation, FeedForward, Projection, ProjectionStep, SynthesisMode};

/// What may stand before the names of the layers' tensors; a base model saved by itself has nothing.
const PREFIXES: [&str; 2] = ["model.", ""];

/// The weight of a head of its own.
const HEAD: &str = "lm_head.weight";

/// A decoder of the Llama family.
///
/// Made by [`load`](crate::load), or from a [`WeightLoader`].
///
/// # Sources
/// Touvron et al., Llama 2, <https://arxiv.org/abs/2307.09288>; the models that differ are named in [`LlamaConfig`].
#[derive(Module, Debug)]
pub struct Llama {
    /// The vectors of the tokens.
    pub embed_tokens: TokenEmbedding,
    /// The layers, first to last.
    pub layers: Vec<LlamaLayer>,
    /// The norm before the head.
    pub norm: RmsNorm,
    /// From `hidden_size` to `vocab_size`; `None` is the transposed embedding.
    pub lm_head: Option<Projection>,
    /// How a head that is the embedding gets at its weight.
    #[module(skip)]
    synthesis: SynthesisMode,
    /// How caches hold keys and values.
    #[module(skip)]
    cache_format: CacheFormat,
}

/// One layer: attention and MLP, each after a norm and added to what went in.
#[derive(Module, Debug)]
pub struct LlamaLayer {
    /// The norm before the attention.
    pub input_norm: RmsNorm,
    /// Causal attention with rotary positions.
    pub attention: PIXELAttention,
    /// The norm before the MLP.
    pub post_attention_norm: RmsNorm,
    /// The MLP.
    pub mlp: GatedMlp,
}

/// `down(silu(gate(x)) · up(x))`.
///
/// Source: Shazeer, GLU Variants Improve Transformer, <https://arxiv.org/abs/2002.05202>.
#[derive(Module, Debug)]
pub struct GatedMlp {
    /// From `hidden_size` to `intermediate_size`.
    pub gate: Projection,
    /// From `hidden_size` to `intermediate_size`.
    pub up: Projection,
    /// From `intermediate_size` to `hidden_size`.
    pub down: Projection,
}

/// The keys and values of the tokens that a [`Llama`] has seen, a [`KeyValueCache`] for each layer.
#[derive(Clone, Debug)]
pub struct LlamaCache {
    layers: Vec<KeyValueCache>,
}

impl Llama {
    /// A decoder of parts that are made elsewhere: weights multiplied from their codes, caches in F32.
    ///
    /// # Example
    /// One with random patterns, such as is trained from scratch or timed:
    /// ```
    /// # #[cfg(feature = "flex")] {
    /// use burn::nn::RmsNormConfig;
    /// use burn::tensor::{Device, Int, Tensor};
    /// use pixel_models::llama::{GatedMlp, LlamaLayer};
    /// use pixel_models::{Llama, TokenEmbedding};
    /// use pixel_nn::attention::{PIXELAttention, PIXELAttentionConfig, RotaryConfig};
    /// use pixel_nn::{PIXELEmbeddingConfig, PIXELLinearConfig, Projection};
    ///
    /// let device = Device::flex();
    /// let map = |from, to| Projection::from(PIXELLinearConfig::new(from, to).with_bias(false).init(&device));
    /// let attention = PIXELAttentionConfig::new(64, 4).with_bias(false).with_causal(true);
    /// let attention = attention.with_rotary(Some(RotaryConfig::new())).init(&device);
    /// let (query, key, value, output) = (map(64, 64), map(64, 64), map(64, 64), map(64, 64));
    /// let norm = || RmsNormConfig::new(64).init(&device);
    /// let layer = LlamaLayer {
    ///     input_norm: norm(),
    ///     attention: PIXELAttention { query, key, value, output, ..attention },
    ///     post_attention_norm: norm(),
    ///     mlp: GatedMlp { gate: map(64, 96), up: map(64, 96), down: map(96, 64) },
    /// };
    /// let embedding = TokenEmbedding::Pixel(PIXELEmbeddingConfig::new(50, 64).init(&device));
    /// let model = Llama::new(embedding, vec![layer], norm(), None);
    /// assert_eq!(model.forward(Tensor::<2, Int>::from_data([[3, 1]], &device)).dims(), [1, 2, 50]);
    /// # }
    /// ```
    pub fn new(
        embed_tokens: TokenEmbedding,
        layers: Vec<LlamaLayer>,
        norm: RmsNorm,
        lm_head: Option<Projection>,
    ) -> Self {
        let (synthesis, cache_format) = (SynthesisMode::OnDemand, CacheFormat::F32);
        Self { embed_tokens, layers, norm, lm_head, synthesis, cache_format }
    }

    /// Reads the parameters that `config` describes.
    ///
    /// # Errors
    /// [`ModelError`] for a tensor that is missing, has another shape or cannot be read.
    pub fn from_loader(config: &LlamaConfig, loader: &mut WeightLoader<'_>) -> Result<Self, ModelError> {
        let prefix = loader.prefix(&PREFIXES, "embed_tokens.weight");
        let (vocabulary, hidden) = (config.vocab_size, config.hidden_size);
        let table = format!("{prefix}embed_tokens.weight");
        let embed_tokens = loader.embedding(&table, [vocabulary, hidden])?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| LlamaLayer::from_loader(config, layer, &format!("{prefix}layers.{layer}"), loader));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = loader.rms_norm(&format!("{prefix}norm"), hidden, config.rms_norm_eps)?;
        let lm_head = match config.tie_word_embeddings {
            true => {
                loader.skip_copy(HEAD, &table)?;
                None
            }
            false => Some(loader.projection("lm_head", [vocabulary, hidden], false)?),
        };
        let (synthesis, cache_format) = (loader.synthesis().clone(), loader.cache_format());
        if !cache_format.fits(config.head_dim) {
            let what = format!(
                "a cache of {} bits for heads of {} values: they do not fill words of 32 bits",
                cache_format.bits(),
                config.head_dim
            );
            return Err(ModelError::Unsupported { path: loader.root(), what });
        }
        Ok(Self { embed_tokens, layers, norm, lm_head, synthesis, cache_format })
    }

    /// The logits of the token after each one of a text.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - output: `[batch, seq, vocab_size]`, F32
    ///
    /// # Panics
    /// On CPU backends, if a token is `vocab_size` or more.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.head(self.hidden(tokens))
    }

    /// The states before the head, with the last norm.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - output: `[batch, seq, hidden_size]`
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn hidden(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let states = self.layers.iter().fold(self.embed(tokens), |states, layer| layer.forward(states));
        self.norm.forward(states)
    }

    /// [`hidden`](Self::hidden) of new tokens, which are added to `cache`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and if `cache` is of a model with another number of layers, or of another batch.
    pub fn hidden_cached(&self, tokens: Tensor<2, Int>, cache: &mut LlamaCache) -> Tensor<3> {
        assert_eq!(cache.layers.len(), self.layers.len(), "layers of the cache (left) and of the model (right)");
        let layers = self.layers.iter().zip(&mut cache.layers);
        let states = layers.fold(self.embed(tokens), |states, (layer, cache)| layer.forward_cached(states, cache));
        self.norm.forward(states)
    }

    /// The logits that follow from states.
    ///
    /// # Shapes
    /// - states: `[batch, seq, hidden_size]`, with the last norm
    /// - output: `[batch, seq, vocab_size]`, F32
    pub fn head(&self, states: Tensor<3>) -> Tensor<3> {
        let logits = match &self.lm_head {
            Some(head) => head.forward(states),
            None => self.embed_tokens.scores(states, &self.synthesis),
        };
        logits.cast(DType::F32)
    }

    /// The logits of the token that comes next, after the tokens in `cache` and `tokens`, which are added to it. The
    /// head is applied to the last position alone.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`, those at positions `cache.len()..cache.len() + seq`; at least one
    /// - output: `[batch, vocab_size]`, F32
    ///
    /// # Panics
    /// As [`hidden_cached`](Self::hidden_cached), and if `seq` is 0.
    pub fn forward_cached(&self, tokens: Tensor<2, Int>, cache: &mut LlamaCache) -> Tensor<2> {
        let [batch, seq] = tokens.dims();
        assert!(seq > 0, "forward_cached needs at least one token");
        let last = self.hidden_cached(tokens, cache).slice(s![.., seq - 1.., ..]);
        self.head(last).reshape([batch, self.embed_tokens.n_embedding()])
    }

    /// The logits of the token after each one of `tokens`, which are added to `cache`.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`, those at positions `cache.len()..cache.len() + seq`
    /// - output: `[batch, seq, vocab_size]`, F32
    ///
    /// # Panics
    /// As [`hidden_cached`](Self::hidden_cached).
    pub fn forward_cached_all(&self, tokens: Tensor<2, Int>, cache: &mut LlamaCache) -> Tensor<3> {
        self.head(self.hidden_cached(tokens, cache))
    }

    /// An empty cache that grows as tokens come, in the format that the model was [loaded](crate::LoadOptions) with.
    pub fn cache(&self) -> LlamaCache {
        self.cache_with_capacity(0)
    }

    /// An empty cache that holds `tokens` tokens before it moves for the first time.
    pub fn cache_with_capacity(&self, tokens: usize) -> LlamaCache {
        let cache = KeyValueCache::with_capacity(tokens).with_format(self.cache_format);
        LlamaCache { layers: vec![cache; self.layers.len()] }
    }

    /// The linear layers, and the head if it has a weight of its own.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        let layers = self.layers.iter().flat_map(|layer| {
            let GatedMlp { gate, up, down } = &layer.mlp;
            projections(&layer.attention).into_iter().chain([gate, up, down])
        });
        layers.chain(&self.lm_head)
    }

    /// What the [`projections`](Self::projections) take.
    pub fn linear_size(&self) -> LinearSize {
        LinearSize::of(self.projections())
    }

    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        // Patterns give F32, whatever the type of the other layers.
        self.embed_tokens.forward(tokens).cast(self.norm.gamma.val().dtype())
    }
}

impl LlamaLayer {
    fn from_loader(
        config: &LlamaConfig,
        layer: usize,
        name: &str,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Self, ModelError> {
        let (hidden, epsilon) = (config.hidden_size, config.rms_norm_eps);
        Ok(Self {
            input_norm: loader.rms_norm(&format!("{name}.input_layernorm"), hidden, epsilon)?,
            attention: attention(config, layer, &format!("{name}.self_attn"), loader)?,
            post_attention_norm: loader.rms_norm(&format!("{name}.post_attention_layernorm"), hidden, epsilon)?,
            mlp: GatedMlp::from_loader(config, &format!("{name}.mlp"), loader)?,
        })
    }

    /// Reads a text, `[batch, seq, hidden_size]` to the same.
    pub fn forward(&self, states: Tensor<3>) -> Tensor<3> {
        self.block().forward(states, None)
    }

    /// Reads new tokens, `[batch, seq, hidden_size]` to the same, and adds them to `cache`.
    ///
    /// # Panics
    /// As [`PIXELAttention::forward_cached`].
    pub fn forward_cached(&self, states: Tensor<3>, cache: &mut KeyValueCache) -> Tensor<3> {
        self.block().forward_cached(states, None, cache)
    }

    fn block(&self) -> AttentionBlock<'_> {
        let GatedMlp { gate, up, down } = &self.mlp;
        let mlp = FeedForward::gated(gate, up, down).with_norm(&self.post_attention_norm);
        self.attention.block().with_norm(&self.input_norm).with_feed_forward(mlp)
    }
}

impl GatedMlp {
    fn from_loader(config: &LlamaConfig, name: &str, loader: &mut WeightLoader<'_>) -> Result<Self, ModelError> {
        let (hidden, width, bias) = (config.hidden_size, config.intermediate_size, config.mlp_bias);
        Ok(Self {
            gate: loader.projection(&format!("{name}.gate_proj"), [width, hidden], bias)?,
            up: loader.projection(&format!("{name}.up_proj"), [width, hidden], bias)?,
            down: loader.projection(&format!("{name}.down_proj"), [hidden, width], bias)?,
        })
    }

    /// Applies the MLP to every token, `[batch, seq, hidden_size]` to the same.
    pub fn forward(&self, states: Tensor<3>) -> Tensor<3> {
        let inner = ProjectionStep::new([&self.gate, &self.up]).with_activation(Activation::GatedSilu);
        self.down.forward(inner.forward(states))
    }
}

/// Why a model of this configuration does not read the tensor `name`.
pub(crate) fn why_unread(config: &LlamaConfig, name: &str) -> Option<UnreadReason> {
    if layer_of(name).is_some_and(|layer| layer >= config.num_hidden_layers) {
        return Some(UnreadReason::Layer { layers: config.num_hidden_layers });
    }
    if name == HEAD && config.tie_word_embeddings {
        return Some(UnreadReason::TiedHead);
    }
    let field = match (config.family, name.contains("self_attn"), name.contains("mlp")) {
        (LlamaFamily::Llama | LlamaFamily::Qwen3, true, _) => Some("attention_bias"),
        (LlamaFamily::Llama, _, true) => Some("mlp_bias"),
        _ => None,
    };
    name.ends_with(".bias").then_some(UnreadReason::Bias { field })
}

/// The attention of one layer. Hugging Face's checkpoints pair the halves of a head, which is the order of [`Rotary`].
fn attention(
    config: &LlamaConfig,
    layer: usize,
    name: &str,
    loader: &mut WeightLoader<'_>,
) -> Result<PIXELAttention, ModelError> {
    let (hidden, query, key) = (config.hidden_size, config.query_size(), config.key_size());
    let mut input = |part: &str, size| loader.projection(&format!("{name}.{part}"), [size, hidden], config.input_bias);
    let (query_map, key_map, value_map) = (input("q_proj", query)?, input("k_proj", key)?, input("v_proj", key)?);
    let output = loader.projection(&format!("{name}.o_proj"), [hidden, query], config.output_bias)?;
    let mut norm = |part: &str| match config.family {
        LlamaFamily::Qwen3 => {
            loader.rms_norm(&format!("{name}.{part}"), config.head_dim, config.rms_norm_eps).map(Some)
        }
        _ => Ok(None),
    };
    Ok(PIXELAttention {
        query: query_map,
        key: key_map,
        value: value_map,
        output,
        query_norm: norm("q_norm")?,
        key_norm: norm("k_norm")?,
        dropout: DropoutConfig::new(0.0).init(),
        rotary: Some(Rotary::new(&config.rotary, config.head_dim)),
        d_model: hidden,
        n_heads: config.num_attention_heads,
        n_kv_heads: config.num_key_value_heads,
        d_head: config.head_dim,
        causal: true,
        window: config.windows[layer],
        quiet_softmax: false,
    })
}

impl LlamaCache {
    /// The number of tokens held: the position of the next one.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KeyValueCache::len)
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets every token; the next batch may have another size.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(KeyValueCache::clear);
    }

    /// Forgets the tokens from `len` on; nothing happens if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.layers.iter_mut().for_each(|layer| layer.truncate(len));
    }
}
