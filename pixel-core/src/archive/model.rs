//! A model to compare, dense or packed.

use super::checkpoint::Checkpoint;
use super::error::ArchiveError;
use super::manifest::MANIFEST_KEY;
use super::reader::Archive;
use crate::archive::FloatType;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

/// A checkpoint or an archive, read the same way.
#[derive(Debug)]
pub enum Model {
    /// A dense checkpoint.
    Dense(Checkpoint),
    /// An archive.
    Packed(Archive),
}

/// A tensor of a [`Model`].
#[derive(Debug, Clone, PartialEq)]
pub struct ModelTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// The type of its values; of the source's values if it is packed.
    pub dtype: Dtype,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// The codec, if it is packed.
    pub codec: Option<String>,
}

impl ModelTensor {
    /// Whether the values are floats, which [`Model::to_f32`] reads.
    pub fn is_float(&self) -> bool {
        FloatType::of(self.dtype).is_some()
    }
}

impl Model {
    /// Opens a checkpoint or an archive, whichever `path` holds.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArchiveError> {
        let checkpoint = Checkpoint::open(path)?;
        if checkpoint.shards().iter().any(|shard| shard.metadata.contains_key(MANIFEST_KEY)) {
            return Ok(Self::Packed(Archive::from_checkpoint(checkpoint)?));
        }
        Ok(Self::Dense(checkpoint))
    }

    /// The files.
    pub const fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Dense(checkpoint) => checkpoint,
            Self::Packed(archive) => archive.checkpoint(),
        }
    }

    /// The tensors that the model has once it is dense, by name.
    pub fn tensors(&self) -> BTreeMap<String, ModelTensor> {
        let stored = |name: &String| {
            let info = &self.checkpoint().tensors()[name];
            let (shape, dtype, stored_bytes) = (info.shape.clone(), info.dtype, info.num_bytes());
            (name.clone(), ModelTensor { shape, dtype, stored_bytes, codec: None })
        };
        match self {
            Self::Dense(checkpoint) => checkpoint.tensors().keys().map(stored).collect(),
            Self::Packed(archive) => {
                let packed = archive.entries().iter().map(|(name, entry)| {
                    let tensor = ModelTensor {
                        shape: <[usize; 2]>::from(entry.header().shape).to_vec(),
                        dtype: entry.manifest().dtype.dtype(),
                        stored_bytes: entry.num_bytes(),
                        codec: Some(entry.header().codec.to_string()),
                    };
                    (name.clone(), tensor)
                });
                archive.kept().keys().map(stored).chain(packed).collect()
            }
        }
    }

    /// The values of the float tensor `name`, synthesised if it is packed; hashes are checked.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, ArchiveError> {
        match self {
            Self::Packed(archive) if archive.entries().contains_key(name) => {
                Ok(archive.packed(name)?.synthesize().into_vec())
            }
            Self::Packed(archive) => archive.kept_bytes(name).and_then(|_| archive.checkpoint().to_f32(name)),
            Self::Dense(checkpoint) => checkpoint.to_f32(name),
        }
    }

    /// The bytes of a tensor that is stored unchanged; `None` if it is packed.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn bytes(&self, name: &str) -> Result<Option<&[u8]>, ArchiveError> {
        match self {
            Self::Packed(archive) if archive.entries().contains_key(name) => Ok(None),
            Self::Packed(archive) => Ok(Some(archive.kept_bytes(name)?.1)),
            Self::Dense(checkpoint) => Ok(Some(checkpoint.bytes(checkpoint.info(name)?))),
        }
    }
}
