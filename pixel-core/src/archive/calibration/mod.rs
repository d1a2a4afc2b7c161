//! Calibration: the second moments of each weight's inputs, collected from forward passes and kept in a file.
//!
//! The file is safetensors. A *group* is what weights that read the same inputs share; it is called after the first of
//! them and stored as `GROUP.moments`, F32 `[n·(n+1)/2]`, the lower triangle of `Σ x·xᵀ / tokens` row after row, and
//! `GROUP.mean`, F32 `[n]`, `Σ x / tokens`, and `GROUP.powers`. `docs/format.md` has the rest. Files of the same model
//! that were collected from other texts, on other machines, are [`merge`](fn@merge)d by their token counts.

mod accumulator;
mod description;
mod error;
mod merge;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use accumulator::Accumulator;
pub use description::{Description, Group, Source, Weighting};
pub use error::CalibrationFileError;
pub use merge::merge;
pub use reader::Calibration;
pub use writer::CalibrationWriter;

/// The key of the description under `__metadata__`.
pub const CALIBRATION_KEY: &str = "pixel_calibration";
/// A reader refuses other major versions.
pub const VERSION_MAJOR: u32 = 1;
/// A reader accepts other minor versions and ignores the fields that it does not know.
pub const VERSION_MINOR: u32 = 1;

/// Widths above this are refused: their moments would not fit any memory.
const MAX_WIDTH: usize = 1 << 20;
