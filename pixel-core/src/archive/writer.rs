//! Writers of whole outputs: checkpoints of one or more safetensors files, and archives, which are such with a
//! manifest.
//!
//! ```text
//!  names, types, shapes ──▶ FilePlan ──▶ CheckpointWriter ──▶ final name
//!  PackedHeader, kept   ──▶ ArchivePlan ─▶ ArchiveWriter ───┘
//! ```
//!
//! Sizes are known before contents: every tensor has its place from the start, workers write in any order, headers go
//! in last.

use super::dtype::FloatType;
use super::error::ArchiveError;
use super::fault::ManifestError;
use super::manifest::{Manifest, PackedEntry};
use super::reader::stream_name;
use super::shard_writer::{ShardWriter, TensorPlan, data_start, header, in_file_order};
use super::staging::{OutputKind, Replace, Staging};
use crate::error::ConfigError;
use crate::packed::{PackedHeader, PackedWeight};
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// `__metadata__` of a file.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Readers of safetensors refuse longer headers.
const MAX_HEADER: usize = 100_000_000;

/// A placeholder for a hash that is not known yet.
const UNKNOWN_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The layout of one file, to the byte.
#[derive(Debug, Clone)]
pub(crate) struct FilePlan {
    pub(crate) file_name: String,
    /// In file order, with offsets from the start of the data.
    tensors: Vec<(TensorPlan, usize)>,
    /// Bytes that the header may take.
    header_len: usize,
}

impl FilePlan {
    /// A file of `tensors`, with room for `widest`, the longest metadata that can occur.
    ///
    /// # Errors
    /// [`ArchiveError::Manifest`] for a header that readers would refuse.
    pub(crate) fn new(
        file_name: impl Into<String>,
        tensors: Vec<TensorPlan>,
        widest: &Metadata,
    ) -> Result<Self, ArchiveError> {
        let (file_name, tensors) = (file_name.into(), in_file_order(tensors));
        let header_len = header(&tensors, widest).len();
        if header_len + 8 > MAX_HEADER {
            let source = ManifestError::HeaderLength { found: header_len, limit: MAX_HEADER };
            return Err(ArchiveError::manifest(Path::new(&file_name), source));
        }
        Ok(Self { file_name, tensors, header_len })
    }

    /// The tensors in file order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &TensorPlan> {
        self.tensors.iter().map(|(tensor, _)| tensor)
    }

    /// Bytes of the file.
    pub(crate) fn num_bytes(&self) -> u64 {
        let data: usize = self.tensors().map(TensorPlan::num_bytes).sum();
        (data_start(self.header_len) + data) as u64
    }
}

/// Files that get their final name together, once all of them are complete.
#[derive(Debug)]
pub(crate) struct CheckpointWriter {
    staging: Staging,
    files: Vec<ShardWriter>,
}

impl CheckpointWriter {
    /// Starts `files`, which will be `output`: a single one under that name, or all of them in a directory.
    ///
    /// # Errors
    /// [`ArchiveError::OutputIsFile`] for several files in one; what [`Staging::new`] refuses.
    pub(crate) fn create(
        output: &Path,
        kind: OutputKind,
        files: &[FilePlan],
        overwrite: bool,
    ) -> Result<Self, ArchiveError> {
        if kind == OutputKind::File && files.len() > 1 {
            return Err(ArchiveError::OutputIsFile { path: output.to_owned(), shards: files.len() });
        }
        let staging = Staging::new(output, kind, Replace::ours_if(overwrite))?;
        let create = |plan: &FilePlan| {
            let path = match kind {
                OutputKind::Directory => staging.path().join(&plan.file_name),
                OutputKind::File => staging.path().to_owned(),
            };
            ShardWriter::create(&path, plan.tensors.clone(), plan.header_len)
        };
        let files = files.iter().map(create).collect::<Result<_, _>>()?;
        Ok(Self { staging, files })
    }

    /// File `index`, to write tensors into.
    pub(crate) fn file(&self, index: usize) -> &ShardWriter {
        &self.files[index]
    }

    /// Writes the headers with the `metadata` of each file, lets `extras` add to a directory, and gives everything its
    /// final name. Returns what `extras` does, nothing for a file.
    ///
    /// # Errors
    /// [`ArchiveError::Io`]; those of `extras`. Nothing is then left.
    pub(crate) fn finish<T: Default>(
        self,
        metadata: impl IntoIterator<Item = Metadata>,
        extras: impl FnOnce(&Path) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        for (file, metadata) in self.files.into_iter().zip(metadata) {
            file.finish(&metadata)?;
        }
        let done = match self.staging.kind() {
            OutputKind::Directory => extras(self.staging.path())?,
            OutputKind::File => T::default(),
        };
        self.staging.commit()?;
        Ok(done)
    }
}

/// One tensor of an archive that will be written.
#[derive(Debug, Clone)]
pub(crate) enum ArchiveTensor {
    /// Stored as codes; the dense weight is of type `dtype`.
    Packed { name: String, header: PackedHeader, dtype: FloatType },
    /// Stored unchanged.
    Kept { name: String, dtype: Dtype, shape: Vec<usize> },
}

/// The layout of one file of an archive.
#[derive(Debug, Clone)]
pub(crate) struct ArchivePlan {
    pub(crate) file: FilePlan,
    /// `__metadata__`, without the manifest.
    metadata: Metadata,
}

impl ArchivePlan {
    /// A file of `tensors` with `metadata` of its own.
    ///
    /// # Errors
    /// [`ConfigError`] if the codec of a packed tensor cannot be built; [`ArchiveError::Manifest`] for a header that
    /// readers would refuse.
    pub(crate) fn new(
        file_name: impl Into<String>,
        metadata: Metadata,
        tensors: impl IntoIterator<Item = ArchiveTensor>,
    ) -> Result<Self, ArchiveError> {
        let (mut plans, mut widest) = (Vec::new(), Manifest::new());
        for tensor in tensors {
            match tensor {
                ArchiveTensor::Kept { name, dtype, shape } => {
                    widest.kept.insert(name.clone(), UNKNOWN_HASH.to_owned());
                    plans.push(TensorPlan { name, dtype, shape });
                }
                ArchiveTensor::Packed { name, header, dtype } => {
                    plans.extend(stream_plans(&name, &header)?);
                    widest.tensors.insert(name, PackedEntry::widest(header, dtype));
                }
            }
        }
        let file = FilePlan::new(file_name, plans, &with_manifest(&metadata, &widest))?;
        Ok(Self { file, metadata })
    }
}

impl ArchivePlan {
    /// Refuses two stored tensors of one name.
    ///
    /// # Errors
    /// [`ManifestError::NameTaken`], in an [`ArchiveError::Manifest`] of the file `path`.
    pub(crate) fn check_names(&self, path: &Path) -> Result<(), ArchiveError> {
        let mut names = BTreeSet::new();
        match self.file.tensors().find(|tensor| !names.insert(&tensor.name)) {
            None => Ok(()),
            Some(taken) => {
                let source = ManifestError::NameTaken { tensor: taken.name.clone() };
                Err(ArchiveError::manifest(path, source))
            }
        }
    }
}

/// The streams of a packed tensor, as tensors of a safetensors file.
fn stream_plans(name: &str, header: &PackedHeader) -> Result<Vec<TensorPlan>, ConfigError> {
    let plan = |stream: &crate::codec::StreamSpec| TensorPlan {
        name: stream_name(name, stream),
        dtype: stream.dtype.safetensors(),
        shape: stream.shape.clone(),
    };
    Ok(header.streams()?.iter().map(plan).collect())
}

/// What an archive records of a packed weight that its streams do not contain.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) dtype: FloatType,
    pub(crate) relative_mse: f64,
    pub(crate) output_loss: Option<f64>,
    pub(crate) source_blake3: String,
}

/// Writes an archive, tensors in any order and from any thread.
#[derive(Debug)]
pub(crate) struct ArchiveWriter {
    writer: CheckpointWriter,
    /// Of each file: its own metadata, and the manifest of what has been written.
    manifests: Vec<(Metadata, Mutex<Manifest>)>,
}

impl ArchiveWriter {
    /// Starts an archive of `files`, which will be `output`.
    ///
    /// # Errors
    /// As [`CheckpointWriter::create`].
    pub(crate) fn create(
        output: &Path,
        kind: OutputKind,
        files: &[ArchivePlan],
        overwrite: bool,
    ) -> Result<Self, ArchiveError> {
        let plans: Vec<FilePlan> = files.iter().map(|plan| plan.file.clone()).collect();
        let writer = CheckpointWriter::create(output, kind, &plans, overwrite)?;
        let manifests = files.iter().map(|plan| (plan.metadata.clone(), Mutex::new(Manifest::new()))).collect();
        Ok(Self { writer, manifests })
    }

    /// Writes a packed weight into file `file` and enters it into the manifest.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    ///
    /// # Panics
    /// If no such tensor was planned there.
    pub(crate) fn write_packed(
        &self,
        file: usize,
        name: &str,
        packed: &PackedWeight,
        record: Record,
    ) -> Result<(), ArchiveError> {
        let mut hasher = blake3::Hasher::new();
        for (spec, values) in packed.streams() {
            let bytes = values.to_le_bytes();
            hasher.update(&bytes);
            self.writer.file(file).write(&stream_name(name, &spec), 0, &bytes)?;
        }
        let Record { dtype, relative_mse, output_loss, source_blake3 } = record;
        let stored_blake3 = hasher.finalize().to_hex().to_string();
        let header = packed.header().clone();
        let entry = PackedEntry { header, dtype, relative_mse, output_loss, source_blake3, stored_blake3 };
        self.manifest(file).tensors.insert(name.to_owned(), entry);
        Ok(())
    }

    /// Writes a tensor unchanged into file `file` and enters it into the manifest; `hash` is the BLAKE3 of `bytes`.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    ///
    /// # Panics
    /// If no such tensor was planned there.
    pub(crate) fn write_kept(&self, file: usize, name: &str, bytes: &[u8], hash: String) -> Result<(), ArchiveError> {
        self.writer.file(file).write(name, 0, bytes)?;
        self.manifest(file).kept.insert(name.to_owned(), hash);
        Ok(())
    }

    fn manifest(&self, file: usize) -> std::sync::MutexGuard<'_, Manifest> {
        self.manifests[file].1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the manifests, lets `extras` add to a directory, and gives everything its final name.
    ///
    /// # Errors
    /// As [`CheckpointWriter::finish`].
    pub(crate) fn finish<T: Default>(
        self,
        extras: impl FnOnce(&Path) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        let metadata = self.manifests.into_iter().map(|(metadata, manifest)| {
            with_manifest(&metadata, &manifest.into_inner().unwrap_or_else(PoisonError::into_inner))
        });
        self.writer.finish(metadata.collect::<Vec<_>>(), extras)
    }
}

/// `__metadata__` of a file of an archive.
fn with_manifest(metadata: &Metadata, manifest: &Manifest) -> Metadata {
    let mut metadata = metadata.clone();
    metadata.extend(manifest.to_metadata());
    metadata
}
