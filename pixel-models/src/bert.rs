//! Encoders of the BERT family: BERT, MiniLM, and sentence encoders made from them.
//!
//! ```text
//!  tokens ─▶ word + position + type ─▶ norm ─▶ [ norm(+ attention) ─▶ norm(+ mlp) ] × layers ─▶ states ─▶ pooling
//! ```

use crate::config::{Activation, BertConfig, Pooling};
use crate::error::ModelError;
use crate::weights::{LinearSize, TokenEmbedding, UnreadReason, WeightLoader, layer_of, projections};
use burn::module::Module;
use burn::nn::{DropoutConfig, LayerNorm};
use burn::tensor::{Bool, DType, Int, Tensor, assert_shape, s};
use pixel_nn::attention::PIXELAttention;
use pixel_nn::{FeedForward, Projection};

/// What may stand before the names of the tensors; a base model saved by itself has nothing.
const PREFIXES: [&str; 3] = ["", "bert.", "model."];

/// What the names of the tensors of tasks begin with.
const TASKS: [&str; 3] = ["cls.", "classifier.", "qa_outputs."];

/// The least length of a vector that is divided by its length, and the least number of tokens of a mean: an empty text
/// gives zeros, not numbers that are none. Both are below what a single token gives.
const LEAST: f64 = 1e-9;

/// An encoder of the BERT family.
///
/// Made by [`load`](crate::load), or from a [`WeightLoader`].
///
/// # Sources
/// Devlin et al., <https://arxiv.org/abs/1810.04805>; Reimers and Gurevych (pooling),
/// <https://arxiv.org/abs/1908.10084>.
#[derive(Module, Debug)]
pub struct Bert {
    /// The vectors of the tokens.
    pub word_embeddings: TokenEmbedding,
    /// The vectors of the positions.
    pub position_embeddings: TokenEmbedding,
    /// The vectors of the token types.
    pub token_type_embeddings: TokenEmbedding,
    /// The norm of their sum.
    pub norm: LayerNorm,
    /// The layers, first to last.
    pub layers: Vec<BertLayer>,
}

/// One layer: attention and MLP, each added to what went in and then normed.
#[derive(Module, Debug)]
pub struct BertLayer {
    /// Attention in both directions.
    pub attention: PIXELAttention,
    /// The norm after the attention.
    pub attention_norm: LayerNorm,
    /// From `hidden_size` to `intermediate_size`.
    pub intermediate: Projection,
    /// From `intermediate_size` to `hidden_size`.
    pub output: Projection,
    /// The norm after the MLP.
    pub output_norm: LayerNorm,
    #[module(skip)]
    activation: Activation,
    /// The ε of both norms.
    epsilon: f64,
}

impl Bert {
    /// Reads the parameters that `config` describes.
    ///
    /// # Errors
    /// [`ModelError`] for a tensor that is missing, has another shape or cannot be read.
    pub fn from_loader(config: &BertConfig, loader: &mut WeightLoader<'_>) -> Result<Self, ModelError> {
        let prefix = loader.prefix(&PREFIXES, "embeddings.word_embeddings.weight");
        let hidden = config.hidden_size;
        let mut table =
            |part, rows| loader.embedding(&format!("{prefix}embeddings.{part}_embeddings.weight"), [rows, hidden]);
        let word_embeddings = table("word", config.vocab_size)?;
        let position_embeddings = table("position", config.max_position_embeddings)?;
        let token_type_embeddings = table("token_type", config.type_vocab_size)?;
        let norm = loader.layer_norm(&format!("{prefix}embeddings.LayerNorm"), hidden, config.layer_norm_eps)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| BertLayer::from_loader(config, &format!("{prefix}encoder.layer.{layer}"), loader));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { word_embeddings, position_embeddings, token_type_embeddings, norm, layers })
    }

    /// The states of a text's tokens, all of the first type.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`, `seq` up to `max_position_embeddings`
    /// - mask_pad: `[batch, seq]`, true = padding
    /// - output: `[batch, seq, hidden_size]`; values at padding have no meaning
    ///
    /// # Panics
    /// If the text is too long, or the mask has another shape; on CPU backends, if a token is `vocab_size` or more.
    pub fn forward(&self, tokens: Tensor<2, Int>, mask_pad: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let types = Tensor::zeros([1, tokens.dims()[1]], &tokens.device());
        self.encode(tokens, types, mask_pad)
    }

    /// [`forward`](Self::forward) for pairs of texts: `types` is 0 for the tokens of the first, 1 for those of the
    /// second.
    ///
    /// # Shapes
    /// - tokens, types, mask_pad: `[batch, seq]`
    /// - output: `[batch, seq, hidden_size]`
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and if `types` has another shape.
    pub fn forward_typed(
        &self,
        tokens: Tensor<2, Int>,
        types: Tensor<2, Int>,
        mask_pad: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        let [batch, seq] = tokens.dims();
        assert_shape!(types, [batch, seq]);
        self.encode(tokens, types, mask_pad)
    }

    /// One vector of length 1 for each text.
    ///
    /// # Shapes
    /// - tokens, mask_pad: as [`forward`](Self::forward)
    /// - output: `[batch, hidden_size]`, F32; zeros for the mean of a text that is all padding
    ///
    /// # Panics
    /// As [`forward`](Self::forward), and if the texts are empty (`seq` = 0).
    pub fn embed(&self, tokens: Tensor<2, Int>, mask_pad: Option<Tensor<2, Bool>>, pooling: Pooling) -> Tensor<2> {
        let states = self.forward(tokens, mask_pad.clone()).cast(DType::F32);
        let pooled = match pooling {
            Pooling::Mean => mean(states, mask_pad),
            Pooling::First => {
                let [batch, _, hidden] = states.dims();
                states.slice(s![.., 0..1, ..]).reshape([batch, hidden])
            }
        };
        let length = pooled.clone().square().sum_dim(1).sqrt().clamp_min(LEAST);
        pooled / length
    }

    /// The linear layers.
    pub fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.layers
            .iter()
            .flat_map(|layer| projections(&layer.attention).into_iter().chain([&layer.intermediate, &layer.output]))
    }

    /// What the [`projections`](Self::projections) take.
    pub fn linear_size(&self) -> LinearSize {
        LinearSize::of(self.projections())
    }

    /// The states; `types` may be one row for all texts.
    fn encode(&self, tokens: Tensor<2, Int>, types: Tensor<2, Int>, mask_pad: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let [batch, seq] = tokens.dims();
        let most = self.position_embeddings.n_embedding();
        assert!(seq <= most, "a text of {seq} tokens, the model has {most} positions");
        if let Some(mask) = &mask_pad {
            assert_shape!(mask, [batch, seq]);
        }
        let positions = Tensor::<1, Int>::arange(0..seq as i64, &tokens.device()).reshape([1, seq]);
        let sum = self.word_embeddings.forward(tokens)
            + self.token_type_embeddings.forward(types)
            + self.position_embeddings.forward(positions);
        // Patterns give F32, whatever the type of the other layers.
        let states = self.norm.forward(sum.cast(self.norm.gamma.val().dtype()));
        self.layers.iter().fold(states, |states, layer| layer.forward(states, mask_pad.clone()))
    }
}

/// Why a model of this configuration does not read the tensor `name`.
pub(crate) fn why_unread(config: &BertConfig, name: &str) -> Option<UnreadReason> {
    if layer_of(name).is_some_and(|layer| layer >= config.num_hidden_layers) {
        return Some(UnreadReason::Layer { layers: config.num_hidden_layers });
    }
    TASKS.iter().any(|task| name.starts_with(task)).then_some(UnreadReason::Task)
}

/// The mean over the tokens that are not padding, `[batch, seq, hidden]` to `[batch, hidden]`.
fn mean(states: Tensor<3>, mask_pad: Option<Tensor<2, Bool>>) -> Tensor<2> {
    let [batch, seq, hidden] = states.dims();
    let sum = |states: Tensor<3>| states.sum_dim(1).reshape([batch, hidden]);
    let Some(mask) = mask_pad else { return sum(states) / seq as f32 };
    let count = mask.clone().bool_not().float().cast(DType::F32).sum_dim(1).clamp_min(LEAST);
    let states = states.mask_fill(mask.reshape([batch, seq, 1]), 0.0);
    sum(states) / count
}

impl BertLayer {
    fn from_loader(config: &BertConfig, name: &str, loader: &mut WeightLoader<'_>) -> Result<Self, ModelError> {
        let (hidden, width, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let mut map = |part: &str, shape| loader.projection(&format!("{name}.{part}"), shape, true);
        let attention = PIXELAttention {
            query: map("attention.self.query", [hidden, hidden])?,
            key: map("attention.self.key", [hidden, hidden])?,
            value: map("attention.self.value", [hidden, hidden])?,
            output: map("attention.output.dense", [hidden, hidden])?,
            query_norm: None,
            key_norm: None,
            dropout: DropoutConfig::new(0.0).init(),
            rotary: None,
            d_model: hidden,
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_attention_heads,
            d_head: hidden / config.num_attention_heads,
            causal: false,
            window: None,
            quiet_softmax: false,
        };
        Ok(Self {
            attention,
            intermediate: map("intermediate.dense", [width, hidden])?,
            output: map("output.dense", [hidden, width])?,
            attention_norm: loader.layer_norm(&format!("{name}.attention.output.LayerNorm"), hidden, epsilon)?,
            output_norm: loader.layer_norm(&format!("{name}.output.LayerNorm"), hidden, epsilon)?,
            activation: config.hidden_act,
            epsilon,
        })
    }

    /// Reads a text, `[batch, seq, hidden_size]` to the same; `mask_pad` is `[batch, seq]`, true = padding.
    ///
    /// # Panics
    /// As [`PIXELAttention::attend`].
    pub fn forward(&self, states: Tensor<3>, mask_pad: Option<Tensor<2, Bool>>) -> Tensor<3> {
        let (attention_norm, output_norm) = ((&self.attention_norm, self.epsilon), (&self.output_norm, self.epsilon));
        let mlp = FeedForward::new(&self.intermediate, &self.output, self.activation).with_post_norm(output_norm);
        self.attention.block().with_post_norm(attention_norm).with_feed_forward(mlp).forward(states, mask_pad)
    }
}
