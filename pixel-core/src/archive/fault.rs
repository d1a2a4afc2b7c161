//! What can be wrong inside a file: the causes of an [`ArchiveError`](super::ArchiveError), which names the file.

use super::foreign::Foreign;
use safetensors::SafeTensorError;

/// Why a file is not valid safetensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// It is something else.
    #[error("it is {what}")]
    Foreign {
        /// What it is.
        what: Foreign,
    },
    /// The header describes a tensor in another form.
    #[error("tensor \"{tensor}\"")]
    Entry {
        /// The tensor.
        tensor: String,
        /// What is wrong with the description.
        source: serde_json::Error,
    },
    /// The type of a tensor is not known.
    #[error("tensor \"{tensor}\" has unknown dtype \"{dtype}\"")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Two tensors share bytes.
    #[error("tensor \"{tensor}\" at bytes {start}..{stop} overlaps the one before, which ends at {end}")]
    Overlap {
        /// The second tensor.
        tensor: String,
        /// Its first byte.
        start: u64,
        /// The byte after its last.
        stop: u64,
        /// The byte after the last of the tensor before.
        end: u64,
    },
    /// Bytes belong to no tensor.
    #[error("tensor \"{tensor}\" at bytes {start}..{stop} leaves a gap after {end}")]
    Gap {
        /// The tensor after the gap.
        tensor: String,
        /// Its first byte.
        start: u64,
        /// The byte after its last.
        stop: u64,
        /// The byte after the last of the tensor before.
        end: u64,
    },
    /// The file is longer or shorter than its tensors.
    #[error("the tensors end at byte {end} of the data, the file does not")]
    End {
        /// The byte after the last of the last tensor.
        end: u64,
        /// The library's error.
        source: SafeTensorError,
    },
    /// Any other fault of the header.
    #[error("the header (the file has {bytes} bytes)")]
    Header {
        /// Bytes of the file.
        bytes: usize,
        /// The library's error.
        source: SafeTensorError,
    },
}

/// What is wrong with an index of shards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It is not JSON of the expected form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It places no tensor.
    #[error("\"weight_map\" is empty")]
    Empty,
    /// It points outside its directory.
    #[error("\"weight_map\" places tensor \"{tensor}\" in \"{file}\", not a plain file name")]
    NotPlain {
        /// The tensor.
        tensor: String,
        /// The file named.
        file: String,
    },
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A part of the metadata is absent.
    #[error("\"{key}\" is missing")]
    MissingKey {
        /// The key under `__metadata__`.
        key: &'static str,
    },
    /// It differs from what was written.
    #[error("damaged: BLAKE3 is {found}, \"pixel_blake3\" says {expected}")]
    Damaged {
        /// The hash stored.
        expected: String,
        /// The hash of the manifest.
        found: String,
    },
    /// It is not JSON of the expected form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A tensor is listed and absent.
    #[error("tensor \"{tensor}\" is listed but not stored")]
    NotStored {
        /// The tensor.
        tensor: String,
    },
    /// A tensor is stored and not listed.
    #[error("stored tensor \"{tensor}\" is not listed")]
    NotListed {
        /// The tensor.
        tensor: String,
    },
    /// A stored tensor belongs to two entries.
    #[error("stored tensor \"{tensor}\" is listed twice")]
    ListedTwice {
        /// The tensor.
        tensor: String,
    },
    /// A tensor is packed and kept.
    #[error("tensor \"{tensor}\" is listed both as packed and as kept")]
    BothKinds {
        /// The tensor.
        tensor: String,
    },
    /// A tensor to be stored has the name of a stream.
    #[error("tensor \"{tensor}\" has the name of a part of a packed weight")]
    NameTaken {
        /// The tensor.
        tensor: String,
    },
    /// The header of the file would be too long.
    #[error("the file would have a header of {found} bytes, of which readers take {limit}")]
    HeaderLength {
        /// Bytes of the header.
        found: usize,
        /// Bytes that readers take.
        limit: usize,
    },
}
