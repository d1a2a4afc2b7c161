//! What cannot be evaluated.

use pixel_core::ConfigError;

/// A measurement that cannot be taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// The configuration lies outside its ranges.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text is shorter than one chunk.
    #[error("a chunk needs {needed} tokens, the text has {found}")]
    TooShort {
        /// Tokens of a chunk.
        needed: usize,
        /// Tokens of the text.
        found: usize,
    },
    /// The text has a token that the models do not have.
    #[error("the text has the token {token}, the model has {vocabulary} tokens")]
    UnknownToken {
        /// The first such token.
        token: u32,
        /// How many the model has.
        vocabulary: usize,
    },
    /// A model gave logits of which the softmax is no number.
    #[error("chunk {chunk}: the model predicts token {position} with a log likelihood of {value}")]
    NotFinite {
        /// The chunk, from 0.
        chunk: usize,
        /// The place of the predicted token in its chunk, from 0.
        position: usize,
        /// What was computed.
        value: f64,
    },
    /// A result could not be read from its device.
    #[error("a result cannot be read from its device: {message}")]
    Read {
        /// What the backend says.
        message: String,
    },
    /// There are too few embeddings for that many neighbours, or no neighbours are asked for.
    #[error("{neighbours} neighbours of {found} embeddings: at least one is needed, and an embedding more than that")]
    TooFewEmbeddings {
        /// Neighbours asked for.
        neighbours: usize,
        /// Embeddings of a set.
        found: usize,
    },
    /// The two sets differ in size.
    #[error("there are {dense} dense and {compressed} compressed embeddings")]
    EmbeddingCount {
        /// Embeddings of the dense model.
        dense: usize,
        /// Embeddings of the compressed model.
        compressed: usize,
    },
    /// An embedding has another length than the first one.
    #[error("embedding {index} has {found} numbers, the first one {expected}")]
    EmbeddingLength {
        /// Which one, from 0.
        index: usize,
        /// Its length.
        found: usize,
        /// The length of the first.
        expected: usize,
    },
    /// An embedding has no direction: it is 0, or not finite.
    #[error("embedding {index} has length {norm}")]
    EmbeddingNorm {
        /// Which one, from 0.
        index: usize,
        /// Its Euclidean length.
        norm: f64,
    },
}
