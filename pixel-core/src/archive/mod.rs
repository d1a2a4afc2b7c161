//! Files: dense checkpoints and archives, both safetensors.
//!
//! An archive is a checkpoint some of whose weights are stored as codes; `docs/format.md` defines every byte. Readers
//! treat every byte as hostile, and nothing is visible under its final name before it is complete.

mod burn_layout;
pub mod calibration;
mod checkpoint;
mod dtype;
mod error;
mod fault;
mod foreign;
mod layout;
mod manifest;
mod model;
mod names;
mod ownership;
mod partial;
mod quantised;
mod reader;
mod remark;
mod shard_writer;
mod staging;
mod tensors;
mod writer;

/// BLAKE3 of `bytes` as 64 hexadecimal digits, the form in which manifests hold hashes.
pub fn blake3_hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

pub use burn_layout::{LAYOUT_KEY, OUTPUT_INPUT};
pub use checkpoint::{Checkpoint, Shard, TensorInfo};
pub use dtype::FloatType;
pub use error::ArchiveError;
pub use fault::{IndexError, ManifestError, SafetensorsError};
pub use foreign::Foreign;
pub use layout::model_folder;
pub use manifest::{MANIFEST_HASH_KEY, MANIFEST_KEY, Manifest, PackedEntry, VERSION_MAJOR, VERSION_MINOR};
pub use model::{Model, ModelTensor};
pub use names::{ARCHIVE_FILE, ARCHIVE_INDEX_FILE, INDEX_FILE, SINGLE_FILE};
pub use ownership::{FILE_LIST, PRODUCER_KEY};
pub use partial::remove_partial_outputs;
pub use quantised::{QuantisedCheckpoint, QuantisedError, StoredWeight};
pub use reader::{Archive, Entry};
pub use remark::Remark;
pub(crate) use remark::some_of;
/// The types of stored tensors, as safetensors names them.
pub use safetensors::Dtype;
pub use staging::{OutputKind, check_output, write_file};
pub use tensors::{ArchivedTensor, write_archive};

pub(crate) use names::{archive_name, dense_name, is_index};
pub(crate) use ownership::{PRODUCER, write_file_list};
pub(crate) use shard_writer::{ShardWriter, TensorPlan};
pub(crate) use writer::{ArchivePlan, ArchiveTensor, ArchiveWriter, CheckpointWriter, FilePlan, Record};
