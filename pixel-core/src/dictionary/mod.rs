//! The original's API: patterns with identities, and weights as sums of them.
//!
//! ```text
//! patterns::base_patterns, ──▶ PatternDictionary ──▶ find_best_matches ──▶ PatternMatch
//! computed_pattern,            ids, F16, usage   ──▶ get ──▶ Pursuit ──▶ scales
//! learn_patterns                                     │
//!                              WeightSynthesizer ◀───┘    W ≈ Σ sᵢ · P[idᵢ]
//! ```
//!
//! A [`PatternDictionary`] keeps patterns with identities, for the references of a [`WeightSynthesizer`]. The codec
//! `matching` takes [patterns](crate::patterns) by position and needs no store; it stores those of a dictionary with a
//! weight where [`Encoder::with_dictionary`](crate::Encoder::with_dictionary) asks for it.

mod cholesky;
mod codec;
mod error;
mod lookup;
mod pattern;
mod pursuit;
mod sources;
mod stack;
mod state;
mod store;
mod synthesizer;
#[cfg(test)]
mod tests;

pub use error::DictionaryError;
pub use lookup::PatternMatch;
pub use pattern::{PatternId, PatternMetadata};
pub use pursuit::{Pursuit, PursuitMethod};
pub use store::PatternDictionary;
pub use synthesizer::{PatternRef, SynthesizedFit, WeightSynthesizer, WeightSynthesizerConfig};
