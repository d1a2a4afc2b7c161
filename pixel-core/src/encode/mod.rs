//! From one weight to its packed form.
//!
//! ```text
//!  Matrix ──▶ condition ──▶ code ──────▶ refit ─────▶ pack
//!             rotate, take   blocks of    row scales   PackedWeight, Outcome
//!             parts out,     columns
//!             scale rows     └ driven by error feedback where the inputs are known
//! ```
//!
//! A [`CodingSpec`] says how, an [`Encoder`] does it; the steps in between are in a file each.

mod coding;
mod condition;
mod encoder;
mod evidence;
mod feedback;
mod inputs;
mod low_rank;
mod moments;
mod protected;
mod refit;
mod row_feedback;
mod spec;

pub use condition::{Conditioned, Extracted, condition};
pub use encoder::{Encoder, Outcome, OutputError, compress_weight};
pub use evidence::Evidence;
pub use feedback::{BlockOrder, Damping, Feedback, FeedbackOptions};
pub use inputs::PreparedInputs;
pub use low_rank::{FACTOR_GROUP, FactorStorage, LowRank, LowRankFactors, LowRankSpec};
pub use moments::Moments;
pub use protected::{ProtectedColumns, largest_columns};
pub use spec::CodingSpec;

pub(crate) use low_rank::{DecodedLowRank, streams as low_rank_streams};
pub(crate) use protected::{COLUMNS, VALUES, check_protect, streams as protected_streams};
