//! Patterns: where they come from, how they are kept, found and combined.
//!
//! ```text
//! base_patterns ──┐                      ┌── find_best_matches ──▶ PatternMatch
//! computed_pattern┼─▶ PatternDictionary ─┤
//! learn_patterns ─┘   (ids, f16, usage)  └── get ──▶ Pursuit ──▶ scales
//! ```
//!
//! A [`PatternDictionary`] keeps patterns with identities, for the refs of
//! [`WeightSynthesizer`](crate::synthesis::WeightSynthesizer). The codec `matching` takes base, learned and computed
//! patterns by position and needs no store.

mod base;
mod cholesky;
mod computed;
mod error;
mod learn;
mod lookup;
mod pattern;
mod pursuit;
mod similarity;
mod sources;
mod stack;
mod state;
mod store;
#[cfg(test)]
mod tests;

pub use base::base_patterns;
pub use computed::computed_pattern;
pub use error::DictionaryError;
pub use learn::learn_patterns;
pub use lookup::PatternMatch;
pub use pattern::{PatternId, PatternKind, PatternMetadata};
pub use pursuit::{Pursuit, PursuitMethod};
pub use similarity::{similarities, transposed};
pub use store::PatternDictionary;

pub(crate) use cholesky::GrowingCholesky;
pub(crate) use computed::computed_values;
pub(crate) use error::check_finite;
pub(crate) use similarity::{dot, norm};
