//! What can go wrong between a file or a dense layer and a compressed one.

use pixel_core::archive::ArchiveError;
use pixel_core::backend::BackendError;
use pixel_core::{ConfigError, FormatError, Shape, ShapeError, WeightError};

/// A layer that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(Box<ArchiveError>),
    /// The weight cannot be put on the device, or read back from it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The weight cannot be compressed.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The codec cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Stored codes do not decode.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The shape cannot be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A tensor is not of a float type.
    #[error("tensor \"{tensor}\" holds {found}, a float type is needed")]
    NotFloat {
        /// Its name.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A bias has another length than its weight has rows.
    #[error("bias \"{tensor}\" has shape {found:?}, its weight is {weight}")]
    BiasShape {
        /// Its name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape of the weight.
        weight: Shape,
    },
    /// A tensor could not be read from its device.
    #[error("tensor \"{tensor}\" cannot be read: {message}")]
    Read {
        /// Its name.
        tensor: String,
        /// What the backend says.
        message: String,
    },
    /// An expression of a filter does not parse.
    #[error("expression \"{pattern}\": {message}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What is wrong.
        message: String,
    },
    /// An expression of a filter matches no weight that is to be replaced.
    #[error("expression \"{pattern}\" matches no weight that is to be replaced")]
    Unmatched {
        /// The expression.
        pattern: String,
    },
    /// A parameter of a model cannot be replaced.
    #[error("parameter \"{name}\": {source}")]
    Parameter {
        /// Its path in the model.
        name: String,
        /// Why.
        source: Box<LayerError>,
    },
}

impl From<ArchiveError> for LayerError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(Box::new(error))
    }
}
