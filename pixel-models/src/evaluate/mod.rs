//! What compression costs: perplexity and divergence of language models, neighbours of embeddings.
//!
//! Nothing here knows an architecture: a language model is a function from tokens to logits, an encoder has left its
//! embeddings. Every mean comes with its standard error, of one σ.

mod chunks;
mod compare;
mod embeddings;
mod error;
mod estimate;
mod perplexity;

pub use chunks::PerplexityConfig;
pub use compare::{Comparison, compare};
pub use embeddings::{EmbeddingComparison, NEIGHBOURS, compare_embeddings};
pub use error::EvaluationError;
pub use estimate::Estimate;
pub use perplexity::{Perplexity, perplexity};
