//! What a dictionary refuses.

use super::pattern::PatternId;
use crate::archive::ArchiveError;
use crate::error::ShapeError;
use crate::matrix::Shape;
use std::path::PathBuf;

/// A pattern or a reference that a dictionary cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DictionaryError {
    /// The pattern has no direction.
    #[error("a pattern of {shape} is zero")]
    ZeroPattern {
        /// The shape of the pattern.
        shape: Shape,
    },
    /// A value is NaN or infinite.
    #[error("{what} holds {value} at index {index}")]
    NotFinite {
        /// What was given.
        what: &'static str,
        /// Where, in values.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The pattern was evicted, or never was.
    #[error("pattern {id} is not in the dictionary")]
    Absent {
        /// The pattern asked for.
        id: PatternId,
    },
    /// Referenced patterns leave no room.
    #[error(
        "no room for a pattern of {bytes} bytes: {referenced} patterns are referred to and cannot be evicted, and the \
         dictionary holds {max_patterns} in {max_bytes} bytes"
    )]
    Full {
        /// The capacity in patterns.
        max_patterns: usize,
        /// The capacity in bytes.
        max_bytes: usize,
        /// Referenced patterns.
        referenced: usize,
        /// Bytes of the new pattern.
        bytes: usize,
    },
    /// The values are no whole number of tiles.
    #[error("{len} values are no whole number of tiles of {shape}")]
    PartialTile {
        /// A tile.
        shape: Shape,
        /// The values given.
        len: usize,
    },
    /// More references are released than were retained.
    #[error("pattern {id} has no reference to release")]
    NotRetained {
        /// The pattern.
        id: PatternId,
    },
    /// A reference's pattern has another shape than the weight.
    #[error("pattern {id} is {found}, the weight {expected}")]
    ShapeMismatch {
        /// The pattern.
        id: PatternId,
        /// Its shape.
        found: Shape,
        /// The shape of the weight.
        expected: Shape,
    },
    /// A field of a stored state or of a configuration is outside what is accepted.
    #[error("field \"{field}\" = {value} is outside {range}")]
    Field {
        /// The field.
        field: &'static str,
        /// The value.
        value: String,
        /// The values allowed.
        range: String,
    },
    /// Two stored patterns have the same name.
    #[error("pattern {id} is stored twice")]
    Twice {
        /// The pattern.
        id: PatternId,
    },
    /// An invalid shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The stored state is not JSON of the expected form.
    #[error("the dictionary's state does not parse")]
    Json(#[from] serde_json::Error),
    /// The file cannot be read.
    #[error("cannot read the dictionary {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot save the dictionary")]
    File(#[from] Box<ArchiveError>),
}

/// Refuses NaN and infinity.
pub(crate) fn check_finite(what: &'static str, values: &[f32]) -> Result<(), DictionaryError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(DictionaryError::NotFinite { what, index, value: values[index] }),
        None => Ok(()),
    }
}
