//! Patterns by position: where the codec `matching` takes them from, and how tiles are compared with them.
//!
//! [`PatternDictionary`](crate::dictionary::PatternDictionary), which keeps patterns with identities, is filled from
//! the same sources.

mod base;
mod computed;
mod learn;
mod similarity;

pub use base::{PatternKind, base_patterns};
pub use computed::computed_pattern;
pub use learn::learn_patterns;
pub use similarity::similarities;

pub(crate) use base::DUPLICATE_COSINE;
pub(crate) use computed::{computed_values, normalise};
pub(crate) use learn::strongest;
pub(crate) use similarity::{dot, norm};
