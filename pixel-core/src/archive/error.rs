//! What can go wrong with files: every message names the file, and the tensor where there is one.

use crate::error::{ConfigError, FormatError, WeightError};
use std::path::{Path, PathBuf};

/// A file that cannot be read or written.
///
/// Causes are the error's `source`, not part of its text: print the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The directory holds no weights.
    #[error("{} holds neither model.safetensors nor model.safetensors.index.json nor any other single .safetensors file", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not valid safetensors.
    #[error("{}: not a valid safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The shard index does not parse, or points outside its directory.
    #[error("{}: {message}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The index names a tensor that its shard does not hold.
    #[error("{}: tensor \"{tensor}\" is missing, although the index places it here", path.display())]
    MissingTensor {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A shard holds a tensor that the index does not place there.
    #[error("{}: tensor \"{tensor}\" is not placed here by the index", path.display())]
    StrayTensor {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// No tensor of that name.
    #[error("{}: there is no tensor \"{tensor}\"", path.display())]
    NoSuchTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that should be a weight has another type.
    #[error("{}: tensor \"{tensor}\" is {dtype}, which is no float type of 16, 32 or 64 bits", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A weight cannot be compressed.
    #[error("{}: tensor \"{tensor}\"", path.display())]
    Weight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        source: Box<WeightError>,
    },
    /// The file is not an archive.
    #[error("{}: not a PIXEL archive (no \"pixel\" metadata); `pixel compress` makes one", path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
    },
    /// The input is an archive already.
    #[error("{}: already a PIXEL archive; decompress it first", path.display())]
    AlreadyAnArchive {
        /// The file.
        path: PathBuf,
    },
    /// The archive is of a version that this program cannot read.
    #[error("{}: format version {found} cannot be read, this program reads {supported}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version stored.
        found: String,
        /// The versions that can be read.
        supported: String,
    },
    /// The rates that there are cannot meet a mean.
    #[error("a mean of {target} bits a weight cannot be met: the smallest rates take {smallest:.4}")]
    Budget {
        /// The mean asked for.
        target: f64,
        /// The mean of the smallest rates.
        smallest: f64,
    },
    /// A calibration file is none, contradicts itself, or belongs to another model.
    #[error("{}: {message}", path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The manifest contradicts itself or the file.
    #[error("{}: manifest: {message}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A stored weight does not decode.
    #[error("{}: tensor \"{tensor}\"", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        source: FormatError,
    },
    /// Stored bytes are not those that were written.
    #[error("{}: tensor \"{tensor}\" is damaged: BLAKE3 is {found}, the manifest says {expected}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The hash in the manifest.
        expected: String,
        /// The hash of the bytes.
        found: String,
    },
    /// The recipe or the configuration cannot be carried out.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The output is there already.
    #[error("{} exists already; remove it or overwrite it (--overwrite)", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output is one file, the checkpoint several.
    #[error("{} is one file, but the checkpoint has {shards} shards: name a directory", path.display())]
    OutputIsFile {
        /// The output.
        path: PathBuf,
        /// The shards of the checkpoint.
        shards: usize,
    },
    /// The tensor asks for a codec that cannot be built.
    #[error("tensor \"{tensor}\"")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Why.
        source: ConfigError,
    },
    /// The output would be written into the input, or the other way round.
    #[error("the output {} and the input {} overlap", output.display(), input.display())]
    Overlap {
        /// The output.
        output: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// A weight lies beyond the range of the type asked for.
    #[error("{}: tensor \"{tensor}\" holds {value}, which {dtype} cannot; ask for a wider type", path.display())]
    Overflow {
        /// The file that was to be written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The weight, as f32.
        value: f32,
        /// The type.
        dtype: String,
    },
    /// The caller asked to stop.
    #[error("cancelled; nothing was written under {}", path.display())]
    Cancelled {
        /// The output.
        path: PathBuf,
    },
}

impl ArchiveError {
    /// Wraps an error of the operating system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
