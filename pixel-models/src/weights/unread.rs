//! Tensors of a file that the model as configured does not read, and why.

use std::fmt;

/// A tensor of the file that the model does not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadTensor {
    /// Its name.
    pub name: String,
    /// Why, if that is known.
    pub reason: Option<UnreadReason>,
}

/// Why a tensor is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnreadReason {
    /// The configuration asks for no bias there.
    Bias {
        /// The field that would ask for it; `None` if the family has none.
        field: Option<&'static str>,
    },
    /// The configuration has fewer layers.
    Layer {
        /// `num_hidden_layers`.
        layers: usize,
    },
    /// `tie_word_embeddings` makes the embedding the head, and the head that is stored differs from it.
    TiedHead,
    /// Heads of tasks are not run.
    Task,
}

impl fmt::Display for UnreadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bias { field: Some(field) } => write!(f, "config.json does not set {field}"),
            Self::Bias { field: None } => write!(f, "models of this type have no such biases"),
            Self::Layer { layers } => write!(f, "config.json says num_hidden_layers = {layers}"),
            Self::TiedHead => write!(f, "config.json sets tie_word_embeddings, and the head is not the embedding"),
            Self::Task => write!(f, "heads of tasks are not run"),
        }
    }
}

/// The tensors with the reason that `of` finds for a name.
pub(crate) fn unread(names: &[String], of: impl Fn(&str) -> Option<UnreadReason>) -> Vec<UnreadTensor> {
    names.iter().map(|name| UnreadTensor { name: name.clone(), reason: of(name) }).collect()
}

/// The layer that a tensor belongs to: the number after `layers.` or `layer.`.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| matches!(*part, "layers" | "layer"))?;
    parts.next()?.parse().ok()
}
