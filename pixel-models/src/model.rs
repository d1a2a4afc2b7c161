//! A model with what belongs to it.

use crate::config::{BertConfig, LlamaConfig, Pooling};
use crate::error::ModelError;
use crate::tokenizer::{self, TextTokenizer};
use crate::weights::{UnreadTensor, unread};
use crate::{Bert, Llama, bert, llama};
use burn::module::ParamId;
use burn::tensor::{Bool, Int, Tensor};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A model that [`load`](crate::load) has read.
#[derive(Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a program has few of them, each with hundreds of tensors")]
pub enum LoadedModel {
    /// A decoder, which predicts the next token.
    Causal(CausalModel),
    /// An encoder, which turns texts into vectors.
    Encoder(EncoderModel),
}

/// A decoder with what belongs to it.
#[derive(Debug)]
#[non_exhaustive]
pub struct CausalModel {
    /// The Burn module.
    pub network: Llama,
    /// What `config.json` says.
    pub config: LlamaConfig,
    /// The tensor in the file of each linear layer's and embedding's weight, by the id of its parameter: that of
    /// `weight` where it is dense, of the codes where it is packed.
    pub weight_names: BTreeMap<ParamId, String>,
    /// Tensors of the file that the model does not read; buffers that follow from the configuration, and a head that
    /// is the embedding where both are tied, are left out.
    pub unused: Vec<String>,
    /// The longest text that the model was made for, in tokens.
    pub max_positions: usize,
    /// The tokenizer, if there is a `tokenizer.json`.
    pub tokenizer: Option<TextTokenizer>,
    /// What was opened.
    pub path: PathBuf,
}

/// An encoder with what belongs to it.
#[derive(Debug)]
#[non_exhaustive]
pub struct EncoderModel {
    /// The Burn module.
    pub network: Bert,
    /// What `config.json` says.
    pub config: BertConfig,
    /// How tokens become one vector: what `1_Pooling/config.json` says, the mean without it.
    pub pooling: Pooling,
    /// The tensor in the file of each linear layer's and embedding's weight, by the id of its parameter: that of
    /// `weight` where it is dense, of the codes where it is packed.
    pub weight_names: BTreeMap<ParamId, String>,
    /// Tensors of the file that the model does not read; buffers that follow from the configuration, and BERT's pooler,
    /// are left out.
    pub unused: Vec<String>,
    /// The longest text that the model can read, in tokens.
    pub max_positions: usize,
    /// The tokenizer, if there is a `tokenizer.json`.
    pub tokenizer: Option<TextTokenizer>,
    /// What was opened.
    pub path: PathBuf,
}

impl LoadedModel {
    /// The tensors of the file that the model does not read, with the reason where it is known.
    pub fn unread(&self) -> Vec<UnreadTensor> {
        match self {
            Self::Causal(model) => model.unread(),
            Self::Encoder(model) => model.unread(),
        }
    }

    /// The decoder.
    ///
    /// # Errors
    /// [`ModelError::Kind`] if it is an encoder.
    pub fn into_causal(self) -> Result<CausalModel, ModelError> {
        match self {
            Self::Causal(model) => Ok(model),
            Self::Encoder(EncoderModel { path, .. }) => {
                Err(ModelError::Kind { path, found: "an encoder", expected: "a decoder" })
            }
        }
    }

    /// The encoder.
    ///
    /// # Errors
    /// [`ModelError::Kind`] if it is a decoder.
    pub fn into_encoder(self) -> Result<EncoderModel, ModelError> {
        match self {
            Self::Encoder(model) => Ok(model),
            Self::Causal(CausalModel { path, .. }) => {
                Err(ModelError::Kind { path, found: "a decoder", expected: "an encoder" })
            }
        }
    }
}

impl CausalModel {
    /// Refuses tokens that the embedding has no row for: a tokenizer may know more tokens than its model.
    ///
    /// # Errors
    /// [`ModelError::UnknownToken`] for the first of them.
    pub fn check_tokens<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>) -> Result<(), ModelError> {
        tokenizer::check_tokens(self.tokenizer.as_ref(), tokens, self.config.vocab_size)
    }

    /// The [`unused`](Self::unused) tensors, with the reason where it is known.
    pub fn unread(&self) -> Vec<UnreadTensor> {
        unread(&self.unused, |name| llama::why_unread(&self.config, name))
    }
}

impl EncoderModel {
    /// Refuses tokens that the embedding has no row for: a tokenizer may know more tokens than its model.
    ///
    /// # Errors
    /// [`ModelError::UnknownToken`] for the first of them.
    pub fn check_tokens<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>) -> Result<(), ModelError> {
        tokenizer::check_tokens(self.tokenizer.as_ref(), tokens, self.config.vocab_size)
    }

    /// The [`unused`](Self::unused) tensors, with the reason where it is known.
    pub fn unread(&self) -> Vec<UnreadTensor> {
        unread(&self.unused, |name| bert::why_unread(&self.config, name))
    }

    /// One vector of length 1 for each text, pooled as the model wants it.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`, `seq` up to `max_positions`
    /// - mask_pad: `[batch, seq]`, true = padding
    /// - output: `[batch, hidden_size]`, F32
    ///
    /// # Panics
    /// As [`Bert::embed`].
    pub fn embed(&self, tokens: Tensor<2, Int>, mask_pad: Option<Tensor<2, Bool>>) -> Tensor<2> {
        self.network.embed(tokens, mask_pad, self.pooling)
    }
}
