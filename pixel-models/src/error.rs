//! What can go wrong between a directory of files and a model that runs.

use pixel_core::archive::ArchiveError;
use pixel_nn::LayerError;
use pixel_nn::calibration::CalibrationError;
use std::path::{Path, PathBuf};

/// A model that cannot be loaded, or a text that it cannot read.
///
/// Causes are the error's `source` where there is one: print the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The weight files cannot be read.
    #[error(transparent)]
    Archive(Box<ArchiveError>),
    /// A layer cannot be made on the device.
    #[error(transparent)]
    Layer(Box<LayerError>),
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not JSON, or not an object.
    #[error("{}: not a JSON object: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where they are known.
        message: String,
    },
    /// A configuration lacks a field that the model needs.
    #[error("{}: field \"{field}\" is missing", path.display())]
    MissingField {
        /// The file.
        path: PathBuf,
        /// The field, with a dot between the levels.
        field: String,
    },
    /// A field of a configuration has a value that cannot be.
    #[error("{}: field \"{field}\" is {value}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, with a dot between the levels.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What it has to be.
        reason: String,
    },
    /// The configuration is sound, and asks for something that is not built here.
    #[error("{}: not supported: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field and its value, and what is supported.
        what: String,
    },
    /// The weights lack a tensor.
    #[error("{}: tensor \"{tensor}\" is missing", path.display())]
    MissingTensor {
        /// The checkpoint or archive.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{}: tensor \"{tensor}\" has shape {found:?}, the configuration says {expected:?}", path.display())]
    Shape {
        /// The file that holds it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// The tokenizer cannot be read.
    #[error("{}: {message}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A text cannot be turned into tokens, or tokens into a text.
    #[error("{message}")]
    Text {
        /// What is wrong.
        message: String,
    },
    /// A model has no template of a conversation.
    #[error("{}: no template of a conversation; looked for {looked_for}", path.display())]
    NoTemplate {
        /// The directory.
        path: PathBuf,
        /// The files, and the field.
        looked_for: String,
    },
    /// A template of a conversation is none, or refuses the messages.
    #[error("{}: template of a conversation: {message}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        message: String,
    },
    /// A token has no vector in the model: the tokenizer knows more tokens than the embedding has rows.
    #[error("the token {token}{} has no row in the model's embedding of {rows} rows", spelled(text.as_deref()))]
    UnknownToken {
        /// The token's number.
        token: u32,
        /// Its text, if the tokenizer knows one.
        text: Option<String>,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A model cannot be calibrated.
    #[error(transparent)]
    Calibration(Box<CalibrationError>),
    /// The model is of the other kind.
    #[error("{} holds {found}, {expected} is needed", path.display())]
    Kind {
        /// The checkpoint or archive.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
        /// What was asked for.
        expected: &'static str,
    },
}

impl ModelError {
    /// Wraps an error of the operating system.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

impl From<ArchiveError> for ModelError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(Box::new(error))
    }
}

impl From<LayerError> for ModelError {
    fn from(error: LayerError) -> Self {
        Self::Layer(Box::new(error))
    }
}

impl From<CalibrationError> for ModelError {
    fn from(error: CalibrationError) -> Self {
        Self::Calibration(Box::new(error))
    }
}

/// A token's text in brackets.
fn spelled(text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!(" ({text:?})"))
}
