//! Reads an archive back: every byte is checked before it is used.

use super::checkpoint::{Checkpoint, TensorInfo};
use super::error::ArchiveError;
use super::fault::ManifestError;
use super::manifest::{Manifest, PackedEntry};
use crate::codec::{Stream, StreamSpec, StreamType};
use crate::error::FormatError;
use crate::packed::{PackedHeader, PackedWeight};
use half::f16;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// An archive: a checkpoint some of whose weights are packed.
///
/// # Example
/// ```no_run
/// use pixel_core::archive::Archive;
/// let archive = Archive::open("small")?;
/// for (name, entry) in archive.entries() {
///     println!("{name}: {} {}", entry.header().shape, entry.header().codec);
///     let weight = archive.packed(name)?.synthesize();
///     assert_eq!(weight.shape(), entry.header().shape);
/// }
/// # Ok::<(), pixel_core::archive::ArchiveError>(())
/// ```
#[derive(Debug)]
pub struct Archive {
    checkpoint: Checkpoint,
    entries: BTreeMap<String, Entry>,
    kept: BTreeMap<String, String>,
    checks_hashes: bool,
}

/// A packed weight of an archive.
#[derive(Debug, Clone)]
pub struct Entry {
    manifest: PackedEntry,
    streams: Vec<StreamSpec>,
    shard: usize,
}

impl Entry {
    /// What the manifest says.
    pub const fn manifest(&self) -> &PackedEntry {
        &self.manifest
    }

    /// What describes the packed weight.
    pub const fn header(&self) -> &PackedHeader {
        &self.manifest.header
    }

    /// What is stored, in order.
    pub fn streams(&self) -> &[StreamSpec] {
        &self.streams
    }

    /// The index of the shard that holds it.
    pub const fn shard(&self) -> usize {
        self.shard
    }

    /// Bytes stored.
    pub fn num_bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.num_bytes() as u64).sum()
    }
}

/// The name under which a stream is stored.
pub(crate) fn stream_name(tensor: &str, stream: &StreamSpec) -> String {
    format!("{tensor}.{}", stream.name)
}

impl Archive {
    /// Opens an archive and checks that its manifest accounts for every stored tensor, with the types and shapes that
    /// the codecs ask for. The contents are checked when they are read.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArchiveError> {
        Self::from_checkpoint(Checkpoint::open(path)?)
    }

    /// Takes an open checkpoint as an archive.
    ///
    /// # Errors
    /// [`ArchiveError`]; see [`open`](Self::open).
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Result<Self, ArchiveError> {
        let mut archive = Self { entries: BTreeMap::new(), kept: BTreeMap::new(), checks_hashes: true, checkpoint };
        let mut accounted = BTreeSet::new();
        for (shard, file) in archive.checkpoint.shards().iter().enumerate() {
            let manifest = Manifest::read(&file.path, &file.metadata)?;
            for (name, entry) in manifest.tensors {
                let streams = check_entry(&archive.checkpoint, shard, &name, &entry)?;
                for stream in &streams {
                    account(&mut accounted, &file.path, stream_name(&name, stream))?;
                }
                archive.entries.insert(name, Entry { manifest: entry, streams, shard });
            }
            for (name, hash) in manifest.kept {
                find(&archive.checkpoint, shard, &name)?;
                account(&mut accounted, &file.path, name.clone())?;
                archive.kept.insert(name, hash);
            }
        }
        if let Some(name) = archive.kept.keys().find(|name| archive.entries.contains_key(*name)) {
            let source = ManifestError::BothKinds { tensor: name.clone() };
            return Err(ArchiveError::manifest(archive.checkpoint.root(), source));
        }
        match archive.checkpoint.tensors().keys().find(|name| !accounted.contains(*name)) {
            None => Ok(archive),
            Some(name) => {
                let source = ManifestError::NotListed { tensor: name.clone() };
                Err(ArchiveError::manifest(archive.checkpoint.root(), source))
            }
        }
    }

    /// The same archive, whose contents are taken without their hashes being checked: for programs that have checked a
    /// file once (as `pixel verify` does) and read it often. Codes are still checked for what a decoder must not meet;
    /// a flipped bit in them goes unnoticed.
    pub fn without_hash_checks(self) -> Self {
        Self { checks_hashes: false, ..self }
    }

    /// The checkpoint that stores the archive.
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The packed weights by name.
    pub const fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The tensors stored unchanged, by name, each with its hash.
    pub const fn kept(&self) -> &BTreeMap<String, String> {
        &self.kept
    }

    /// Reads the packed weight `name` and checks its hash, unless [told not to](Self::without_hash_checks).
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn packed(&self, name: &str) -> Result<PackedWeight, ArchiveError> {
        let entry = self.entries.get(name).ok_or_else(|| {
            let (path, tensor) = (self.checkpoint.root().to_owned(), name.into());
            match self.kept.contains_key(name) {
                true => ArchiveError::StoredDense { path, tensor },
                false => ArchiveError::NoSuchTensor { path, tensor },
            }
        })?;
        let path = &self.checkpoint.shards()[entry.shard].path;
        let mut hasher = blake3::Hasher::new();
        let mut streams = Vec::with_capacity(entry.streams.len());
        for spec in &entry.streams {
            let info = self.checkpoint.info(&stream_name(name, spec))?;
            let bytes = self.checkpoint.bytes(info);
            if self.checks_hashes {
                hasher.update(bytes);
            }
            streams.push(read_stream(spec.dtype, bytes));
            self.checkpoint.release(info);
        }
        if self.checks_hashes {
            check_hash(path, name, &entry.manifest.stored_blake3, hasher.finalize())?;
        }
        PackedWeight::new(entry.manifest.header.clone(), streams).map_err(|source| format_error(path, name, source))
    }

    /// Reads the kept tensor `name` and checks its hash, unless [told not to](Self::without_hash_checks).
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn kept_bytes(&self, name: &str) -> Result<(&TensorInfo, &[u8]), ArchiveError> {
        let info = self.checkpoint.info(name)?;
        let bytes = self.checkpoint.bytes(info);
        if let Some(expected) = self.kept.get(name).filter(|_| self.checks_hashes) {
            check_hash(self.checkpoint.path_of(info), name, expected, blake3::hash(bytes))?;
        }
        Ok((info, bytes))
    }
}

fn format_error(path: &Path, tensor: &str, source: FormatError) -> ArchiveError {
    ArchiveError::Format { path: path.to_owned(), tensor: tensor.to_owned(), source }
}

fn check_hash(path: &Path, tensor: &str, expected: &str, found: blake3::Hash) -> Result<(), ArchiveError> {
    let found = found.to_hex();
    if found.as_str() == expected {
        return Ok(());
    }
    Err(ArchiveError::Damaged {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    })
}

/// The tensor `name`, which the manifest of `shard` lists.
fn find<'a>(checkpoint: &'a Checkpoint, shard: usize, name: &str) -> Result<&'a TensorInfo, ArchiveError> {
    let missing = || {
        let source = ManifestError::NotStored { tensor: name.to_owned() };
        ArchiveError::manifest(&checkpoint.shards()[shard].path, source)
    };
    checkpoint.tensors().get(name).filter(|info| info.shard == shard).ok_or_else(missing)
}

/// Notes that the manifest lists the stored tensor `name`, once.
fn account(accounted: &mut BTreeSet<String>, path: &Path, name: String) -> Result<(), ArchiveError> {
    if accounted.insert(name.clone()) {
        return Ok(());
    }
    Err(ArchiveError::manifest(path, ManifestError::ListedTwice { tensor: name }))
}

/// Dense bytes that a weight may have regardless of its stored bytes …
const MAX_DENSE_BYTES: usize = 1 << 30;
/// … and dense bytes per stored byte beyond that. Whole-matrix patterns reach 2400, everything else 70.
const MAX_EXPANSION: usize = 4096;

/// Refuses a weight that would need far more memory than the archive takes on disk.
fn check_expansion(shape: crate::matrix::Shape, streams: &[StreamSpec]) -> Result<(), FormatError> {
    let dense = 4 * shape.num_weights();
    let stored: usize = streams.iter().map(StreamSpec::num_bytes).sum();
    if dense <= MAX_DENSE_BYTES || dense / MAX_EXPANSION <= stored {
        return Ok(());
    }
    Err(FormatError::Expansion { shape, stored })
}

/// Checks that the streams of an entry are stored with the right types and shapes, before anything is allocated.
fn check_entry(
    checkpoint: &Checkpoint,
    shard: usize,
    name: &str,
    entry: &PackedEntry,
) -> Result<Vec<StreamSpec>, ArchiveError> {
    let path = &checkpoint.shards()[shard].path;
    let streams = entry.header.streams().map_err(|source| format_error(path, name, source.into()))?;
    for stream in &streams {
        let info = find(checkpoint, shard, &stream_name(name, stream))?;
        if info.dtype != stream.dtype.safetensors() || info.shape != stream.shape {
            let source = FormatError::StreamShape {
                stream: stream.name,
                found: info.dtype,
                found_shape: info.shape.clone(),
                expected: stream.dtype,
                expected_shape: stream.shape.clone(),
            };
            return Err(format_error(path, name, source));
        }
    }
    check_expansion(entry.header.shape, &streams).map_err(|source| format_error(path, name, source))?;
    Ok(streams)
}

fn read_stream(dtype: StreamType, bytes: &[u8]) -> Stream {
    match dtype {
        StreamType::U32 => Stream::U32(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()),
        StreamType::F16 => Stream::F16(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
        StreamType::I8 => Stream::I8(bytemuck::cast_slice(bytes).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CodingSpec;
    use crate::codec::CodecSpec;
    use crate::matrix::Shape;

    #[test]
    fn a_weight_far_larger_than_its_codes_is_refused() {
        let spec = CodecSpec::new("matching", 0.5).with_option("tile", 0).with_option("patterns", 1);
        let check = |m, n| {
            let shape = Shape::new(m, n).unwrap();
            check_expansion(shape, &CodingSpec::new(spec.clone()).streams(shape).unwrap())
        };
        assert!(check(512, 512).is_ok());
        let error = check(1, 1 << 34).unwrap_err().to_string();
        assert!(error.contains("1×17179869184 is more than"), "{error}");
    }
}
