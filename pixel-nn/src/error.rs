//! What can go wrong between a file or a dense layer and a compressed one.

use crate::replace::KeptParameter;
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
    /// A layer reads inputs of two widths.
    #[error("the layer of \"{weight}\" reads inputs of width {now}, and read some of width {before}")]
    InputWidth {
        /// The name of its weight.
        weight: String,
        /// The width before.
        before: usize,
        /// The width now.
        now: usize,
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
    /// Something of another crate is attached to a parameter.
    #[error("\"{attached}\" is attached to it, which archives do not hold; `materialize` makes the parameter dense")]
    Attached {
        /// Its name: `lora`.
        attached: String,
    },
    /// Two tensors would have one name.
    #[error("two tensors have the name \"{name}\" once renamed")]
    SameName {
        /// The name.
        name: String,
    },
    /// An archive lacks parameters of a model.
    #[error("the archive does not have {}; `with_allow_partial` leaves them as they are", names.join(", "))]
    NotInArchive {
        /// Their names.
        names: Vec<String>,
    },
    /// A stored tensor does not fit its place in a model.
    #[error("the archive has {found}, the model takes {expected}")]
    OtherForm {
        /// What is stored.
        found: String,
        /// What the model has there.
        expected: String,
    },
    /// No weight of a model is to be replaced.
    #[error("no weight is to be replaced{}; `allow_nothing` makes that no error", list(.kept))]
    NothingToReplace {
        /// The weights that it has, and why each is kept.
        kept: Vec<KeptParameter>,
    },
    /// The calibration knows no weight of a model.
    #[error(
        "the calibration knows none of the {weights} weights to be replaced: it goes by the names that `weight_paths` \
         gives"
    )]
    NotCalibrated {
        /// How many are to be replaced.
        weights: usize,
    },
    /// The progress asked to stop.
    #[error("cancelled after {done} of {total} weights")]
    Cancelled {
        /// Weights that were done.
        done: usize,
        /// Weights that were to be replaced.
        total: usize,
    },
    /// A parameter of a model cannot be replaced.
    #[error("parameter \"{name}\": {}", chain(.cause))]
    Parameter {
        /// Its path in the model.
        name: String,
        /// Why. Its text is part of this one's, and so are those of what caused it.
        cause: Box<LayerError>,
    },
}

impl LayerError {
    /// The same error of the parameter `name`.
    pub(crate) fn at(self, name: &str) -> Self {
        match self {
            Self::Cancelled { .. } | Self::Parameter { .. } => self,
            error => Self::Parameter { name: name.into(), cause: Box::new(error) },
        }
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

/// The first of what is kept, each with its reason.
fn list(kept: &[KeptParameter]) -> String {
    const SHOWN: usize = 5;
    let mut text = if kept.is_empty() { ": the model has no matrix".to_owned() } else { String::new() };
    for (i, KeptParameter { name, reason, .. }) in kept.iter().take(SHOWN).enumerate() {
        text += &format!("{} {name} ({reason})", if i == 0 { ":" } else { "," });
    }
    if kept.len() > SHOWN {
        text += &format!(", and {} more", kept.len() - SHOWN);
    }
    text
}

impl From<ArchiveError> for LayerError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(Box::new(error))
    }
}
