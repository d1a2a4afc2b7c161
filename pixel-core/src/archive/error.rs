//! What can go wrong with files: every message names the file, and the tensor where there is one.

use super::calibration::CalibrationFileError;
use super::fault::{IndexError, ManifestError, SafetensorsError};
use super::foreign::Foreign;
use super::quantised::QuantisedError;
use super::remark::some_of;
use super::staging::OutputKind;
use crate::error::{ConfigError, FormatError, WeightError};
use safetensors::Dtype;
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
    #[error("{} holds neither weights (*.safetensors, *.pixel) nor an index of them", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
    },
    /// The directory holds weights in a format that is not read.
    #[error("{} holds no safetensors: {file} is {format}", path.display())]
    OtherFormat {
        /// The directory.
        path: PathBuf,
        /// A file in it.
        file: String,
        /// What that is.
        format: Foreign,
    },
    /// The directory holds models in folders of their own.
    #[error("{} holds no weights itself: name one of its folders, {}", path.display(), folders.join(", "))]
    WeightsInFolders {
        /// The directory.
        path: PathBuf,
        /// The folders that hold weights, by name.
        folders: Vec<String>,
    },
    /// The directory holds several models, and it cannot be told which is meant.
    #[error("{} holds several models or parts of one without an index: name one of {}", path.display(), some_of(names))]
    SeveralModels {
        /// The directory.
        path: PathBuf,
        /// The weight files, indices or folders, by name.
        names: Vec<String>,
    },
    /// The index names files that are not there.
    #[error(
        "{}: {} of the {files} files that it names are missing, {}; download them",
        path.display(),
        missing.len(),
        some_of(missing)
    )]
    MissingFiles {
        /// The index.
        path: PathBuf,
        /// How many files it names.
        files: usize,
        /// Those that are not there, by name.
        missing: Vec<String>,
    },
    /// A file is not valid safetensors.
    #[error("{}: not a valid safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<SafetensorsError>,
    },
    /// The shard index does not parse, or points outside its directory.
    #[error("{}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<IndexError>,
    },
    /// The index names a tensor that its shard does not hold.
    #[error("{}: tensor \"{tensor}\" is missing, although the index places it here", path.display())]
    MissingTensor {
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
    /// A tensor to be stored has another number of bytes than its shape asks for.
    #[error("tensor \"{tensor}\" of {dtype} and shape {shape:?} takes {expected} bytes, {found} are given")]
    TensorLength {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes given.
        found: usize,
        /// Bytes that it takes.
        expected: usize,
    },
    /// A tensor that was asked for as codes is kept as it was.
    #[error("{}: tensor \"{tensor}\" is stored dense, it has no codes", path.display())]
    StoredDense {
        /// The archive.
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
        dtype: Dtype,
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
    /// The available rates cannot meet a mean.
    #[error("a mean of {target} bits a weight cannot be met: the smallest rates take {smallest:.4}")]
    Budget {
        /// The mean asked for.
        target: f64,
        /// The mean of the smallest rates.
        smallest: f64,
    },
    /// A calibration file is invalid, contradicts itself, or belongs to another model.
    #[error("{}", path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<CalibrationFileError>,
    },
    /// The manifest contradicts itself or the file.
    #[error("{}: manifest", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<ManifestError>,
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
    /// Stored bytes differ from those that were written.
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
    /// The recipe or the configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The output exists already.
    #[error("{} exists already, and replacing it was not asked for", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output exists, and is a file that PIXEL did not write.
    #[error("{} is no file that PIXEL wrote, and is not replaced: name another output, or remove it", path.display())]
    ForeignFile {
        /// The output.
        path: PathBuf,
    },
    /// The output exists, and holds a file that PIXEL did not write.
    #[error(
        "{} holds {}, which PIXEL did not write there, and is not replaced: name another output, or remove it",
        path.display(),
        file.display()
    )]
    ForeignContents {
        /// The output.
        path: PathBuf,
        /// The file, relative to it.
        file: PathBuf,
    },
    /// The output exists, and holds a file that PIXEL wrote and somebody changed.
    #[error(
        "{} holds {}, which has changed since PIXEL wrote it, and is not replaced: name another output, or remove it",
        path.display(),
        file.display()
    )]
    ChangedContents {
        /// The output.
        path: PathBuf,
        /// The file, relative to it.
        file: PathBuf,
    },
    /// Burn saved the file, and its linear weights lie as Burn has them, or it cannot be told how.
    #[error(
        "{} was saved by Burn, and {found}: Burn's linear weights are [d_input, d_output], here they are [d_output, \
         d_input]; save the model with `SafetensorsStore::from_file(path).with_to_adapter(BurnToPyTorchAdapter)\
         .skip_enum_variants(true).metadata(\"linear_layout\", \"output_input\")`",
        path.display()
    )]
    BurnLayout {
        /// The file.
        path: PathBuf,
        /// What shows it.
        found: String,
    },
    /// The weights are quantised already.
    #[error(
        "{}: quantised already, {found}; coding it again would add one error to another: {way_out}",
        path.display()
    )]
    Quantised {
        /// The checkpoint.
        path: PathBuf,
        /// What shows it.
        found: String,
        /// What its owner can do.
        way_out: &'static str,
    },
    /// A quantised weight cannot be made floats again.
    #[error("{}: the quantised weight \"{tensor}\" cannot be read", path.display())]
    QuantisedWeight {
        /// The file.
        path: PathBuf,
        /// Its tensor of codes.
        tensor: String,
        /// Why.
        source: Box<QuantisedError>,
    },
    /// Nothing is quantised where quantised weights are expected.
    #[error("{}: no weight is quantised by another tool: it is dense, or an archive for `decompress`", path.display())]
    NotQuantised {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A weight is there as floats and as codes.
    #[error("{} holds a weight twice, as \"{tensor}\" and as \"{codes}\"", path.display())]
    TwoWeights {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor of floats.
        tensor: String,
        /// The tensor of codes.
        codes: String,
    },
    /// The existing entry is of another kind than the output and is not replaced.
    #[error("{} is {found}, the output would be {wanted}", path.display())]
    OutputKind {
        /// The output.
        path: PathBuf,
        /// The kind of the existing entry.
        found: OutputKind,
        /// The kind of the output.
        wanted: OutputKind,
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
        dtype: Dtype,
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

    /// Names the file of a manifest at fault.
    pub(crate) fn manifest(path: &Path, source: ManifestError) -> Self {
        Self::Manifest { path: path.to_owned(), source: Box::new(source) }
    }
}
