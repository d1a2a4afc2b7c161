//! What can be wrong with a calibration file.

use super::{MAX_WIDTH, VERSION_MAJOR, Weighting};
use crate::archive::ArchiveError;
use safetensors::Dtype;
use std::path::{Path, PathBuf};

/// A fault of a calibration file, read or to be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationFileError {
    /// The file has no description.
    #[error("not a calibration file; `pixel calibrate` makes one")]
    NotOne,
    /// The description is not JSON of the expected form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The file is of a version that this program cannot read.
    #[error("version {found} cannot be read, this program reads {VERSION_MAJOR}.x")]
    Version {
        /// The version stored.
        found: String,
    },
    /// Inputs of width zero, or of a width whose moments would not fit into memory.
    #[error("group \"{group}\": d_input = {d_input} is outside 1 to {MAX_WIDTH}")]
    Width {
        /// The group.
        group: String,
        /// The width stored.
        d_input: usize,
    },
    /// A tensor has another type or shape than its group says.
    #[error("tensor \"{tensor}\" is {dtype} {shape:?}, expected F32 [{expected}]")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The number of values that the group asks for.
        expected: usize,
    },
    /// A weight belongs to two groups.
    #[error("tensor \"{weight}\" is in groups \"{first}\" and \"{second}\"")]
    TwoGroups {
        /// The weight.
        weight: String,
        /// One group.
        first: String,
        /// The other.
        second: String,
    },
    /// A number is NaN or infinite.
    #[error("tensor \"{tensor}\" holds {value} at index {index}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Where, in values.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An input has negative power.
    #[error("tensor \"{tensor}\": the power of input {input} is {power}")]
    NegativePower {
        /// The tensor.
        tensor: String,
        /// The input.
        input: usize,
        /// Its power.
        power: f32,
    },
    /// The file is of another model.
    #[error("inputs of width {d_input} for \"{weight}\", which is {shape:?} in {}", path.display())]
    OtherWidth {
        /// The weight.
        weight: String,
        /// The width of its inputs in the calibration file.
        d_input: usize,
        /// Its shape in the checkpoint.
        shape: Vec<usize>,
        /// The file of the checkpoint that holds it.
        path: PathBuf,
    },
    /// No weight of the checkpoint was calibrated.
    #[error("knows no tensor of {}", checkpoint.display())]
    KnowsNone {
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// A group is written that was not announced.
    #[error("group \"{group}\" of width {d_input} was not announced")]
    NotAnnounced {
        /// The group.
        group: String,
        /// The width of its inputs.
        d_input: usize,
    },
    /// A mean does not fit F32.
    #[error("group \"{group}\": value {index} of the {part} is not finite in F32")]
    Mean {
        /// The group.
        group: String,
        /// `moments` or `mean`.
        part: &'static str,
        /// Where, in values.
        index: usize,
    },
    /// Tokens count differently in two files that are merged.
    #[error("tokens weigh {found:?}, in {} {expected:?}", path.display())]
    Weighting {
        /// The weighting of this file.
        found: Weighting,
        /// The other file.
        path: PathBuf,
        /// Its weighting.
        expected: Weighting,
    },
    /// Two files that are merged differ in a group.
    #[error("group \"{group}\" is not the same as in {}", path.display())]
    GroupDiffers {
        /// The group.
        group: String,
        /// The other file.
        path: PathBuf,
    },
    /// Files that are merged name more tokens than can be counted.
    #[error("group \"{group}\": tokens = {tokens}, with those of the other files more than can be counted")]
    TokenSum {
        /// The group.
        group: String,
        /// The tokens of this file.
        tokens: u64,
    },
}

impl CalibrationFileError {
    /// Names the file.
    pub(super) fn in_file(self, path: &Path) -> ArchiveError {
        ArchiveError::Calibration { path: path.to_owned(), source: Box::new(self) }
    }
}
