//! A checkpoint into an archive, tensor by tensor.

use super::files::{SideFiles, check_overlap, write_index};
use super::plan::{Plan, PlanItem, matrix_of, with_manifest};
use super::progress::Progress;
use super::report::{CompressionReport, TensorReport};
use super::workers;
use crate::archive::error::ArchiveError;
use crate::archive::reader::stream_name;
use crate::archive::shard_writer::ShardWriter;
use crate::archive::staging::Staging;
use crate::archive::{Checkpoint, Manifest, PackedEntry};
use crate::encode::Outcome;
use crate::packed::PackedWeight;
use crate::recipe::Decision;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// How a run is carried out; nothing of it changes a byte of the result.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Workers, each with one tensor at a time; 0 for one a processor.
    pub threads: usize,
    /// Replace an output that is there already.
    pub overwrite: bool,
}

/// Compresses `checkpoint` as `plan` says to `output`: a file if that ends in `.safetensors`, a directory otherwise.
///
/// # Errors
/// [`ArchiveError`]; nothing is then left under the final name.
pub fn compress_checkpoint(
    checkpoint: &Checkpoint,
    plan: &Plan,
    output: &Path,
    options: RunOptions,
    progress: &dyn Progress,
) -> Result<CompressionReport, ArchiveError> {
    check_overlap(checkpoint.root(), output)?;
    let side_files = SideFiles::of(checkpoint)?;
    let target = Target::new(output, checkpoint, options.overwrite)?;
    let writers = plan.shards().iter().map(|shard| {
        ShardWriter::create(&target.shard_path(&shard.file_name), shard.tensors.clone(), shard.header_len)
    });
    let writers = writers.collect::<Result<Vec<_>, _>>()?;
    let manifests: Vec<_> = plan.shards().iter().map(|_| Mutex::new(Manifest::new())).collect();
    let reports = Mutex::new(Vec::new());

    let mut items: Vec<&PlanItem> = plan.items().iter().collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.num_weights()));
    workers::for_each_item(options.threads, &items, output, progress, |item| {
        let outcome = store(checkpoint, plan, item, &writers[item.shard], &manifests[item.shard])?;
        let report = TensorReport::new(item, outcome);
        reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(report);
        progress.tensor_done(&item.name, item.num_weights());
        Ok(())
    })?;

    for ((writer, manifest), shard) in writers.into_iter().zip(manifests).zip(plan.shards()) {
        let manifest = manifest.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        writer.finish(&with_manifest(&shard.metadata, &manifest))?;
    }
    let side_bytes = target.finish(checkpoint, &side_files, plan.weight_map(), plan.tensor_bytes())?;
    let mut tensors = reports.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(CompressionReport {
        tensors,
        source_file_bytes: checkpoint.file_bytes(),
        weight_file_bytes: plan.stored_bytes(),
        side_file_bytes: side_bytes,
        left_out: side_files.left_out,
    })
}

/// Stores one tensor and enters it into the manifest; returns its error if it was compressed.
fn store(
    checkpoint: &Checkpoint,
    plan: &Plan,
    item: &PlanItem,
    writer: &ShardWriter,
    manifest: &Mutex<Manifest>,
) -> Result<Option<Outcome>, ArchiveError> {
    let info = checkpoint.info(&item.name)?;
    let bytes = checkpoint.bytes(info);
    let source_blake3 = blake3::hash(bytes).to_hex().to_string();
    let Decision::Compress { codec, rotation, .. } = &item.decision else {
        writer.write(&item.name, 0, bytes)?;
        let mut manifest = manifest.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        manifest.kept.insert(item.name.clone(), source_blake3);
        return Ok(None);
    };
    let (shape, dtype) = matrix_of(checkpoint, item)?;
    let (packed, outcome) = plan.encode(checkpoint, item, plan.weight(checkpoint, item)?)?;
    let entry = PackedEntry {
        shape,
        dtype,
        codec: codec.clone(),
        rotation: *rotation,
        exponent: packed.header().exponent,
        protected: packed.header().protected,
        low_rank: packed.header().low_rank,
        relative_mse: outcome.weight.relative_mse(),
        output_loss: outcome.output.map(|output| output.sums.relative_mse()),
        source_blake3,
        stored_blake3: write_streams(&item.name, &packed, writer)?,
    };
    manifest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).tensors.insert(item.name.clone(), entry);
    Ok(Some(outcome))
}

/// Writes the streams of a packed weight and returns the hash of their bytes.
pub(super) fn write_streams(name: &str, packed: &PackedWeight, writer: &ShardWriter) -> Result<String, ArchiveError> {
    let mut hasher = blake3::Hasher::new();
    for (spec, values) in packed.streams() {
        let bytes = values.to_le_bytes();
        hasher.update(&bytes);
        writer.write(&stream_name(name, &spec), 0, &bytes)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The output of a run under its temporary name.
pub(super) struct Target {
    staging: Staging,
    is_dir: bool,
}

impl Target {
    /// A file if `output` ends in `.safetensors`, a directory otherwise.
    pub(super) fn new(output: &Path, checkpoint: &Checkpoint, overwrite: bool) -> Result<Self, ArchiveError> {
        let is_file = output.extension().is_some_and(|e| e == "safetensors");
        if is_file && checkpoint.shards().len() > 1 {
            return Err(ArchiveError::OutputIsFile { path: output.to_owned(), shards: checkpoint.shards().len() });
        }
        let staging = if is_file { Staging::file(output, overwrite) } else { Staging::directory(output, overwrite) };
        Ok(Self { staging: staging?, is_dir: !is_file })
    }

    /// Where to write the shard `file_name`.
    pub(super) fn shard_path(&self, file_name: &str) -> std::path::PathBuf {
        if self.is_dir { self.staging.path().join(file_name) } else { self.staging.path().to_owned() }
    }

    /// Copies the side files, writes the index of stored tensors by file, and gives everything its final name. A single
    /// file has neither. Returns the bytes beside the weight files.
    pub(super) fn finish(
        self,
        checkpoint: &Checkpoint,
        side_files: &SideFiles,
        weight_map: BTreeMap<String, String>,
        total: u64,
    ) -> Result<u64, ArchiveError> {
        let mut bytes = 0;
        if self.is_dir {
            bytes += side_files.copy(checkpoint.root(), self.staging.path())?;
            if checkpoint.has_index() {
                bytes += write_index(self.staging.path(), &weight_map, total)?;
            }
        }
        self.staging.commit()?;
        Ok(bytes)
    }
}
