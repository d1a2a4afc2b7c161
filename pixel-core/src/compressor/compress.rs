//! A checkpoint into an archive, tensor by tensor.

use super::files::{Extras, SideFiles, check_model_output};
use super::progress::Progress;
use super::report::{CompressionReport, TensorReport};
use super::workers;
use crate::archive::calibration::Calibration;
use crate::archive::{ArchiveError, ArchiveWriter, Checkpoint, OutputKind, Record, archive_name, blake3_hex};
use crate::encode::Outcome;
use crate::plan::{Decision, Plan, PlanItem, matrix_of};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// How a run is carried out; none of it changes a byte of the result.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Workers, each with one tensor at a time, and together on the last; 0 for one a processor.
    pub threads: usize,
    /// Replace an existing output, if PIXEL wrote it.
    pub overwrite: bool,
}

/// Compresses `checkpoint` as `plan` says to `output`: a file if that ends in `.safetensors` or
/// `.pixel`, a directory otherwise.
///
/// # Errors
/// [`ArchiveError`]; nothing is then left under the final name.
pub fn compress_checkpoint(
    checkpoint: &Checkpoint,
    plan: &Plan,
    output: impl AsRef<Path>,
    options: RunOptions,
    progress: &dyn Progress,
) -> Result<CompressionReport, ArchiveError> {
    let output = output.as_ref();
    check_model_output(checkpoint, plan.calibration().map(Calibration::path), output, options.overwrite)?;
    let side_files = SideFiles::of(checkpoint)?;
    let writer = ArchiveWriter::create(output, OutputKind::of(output), plan.files(), options.overwrite)?;
    let reports = Mutex::new(Vec::new());
    let mut items: Vec<&PlanItem> = plan.items().iter().collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.num_weights()));
    workers::for_each_item(options.threads, &items, output, progress, |item| {
        let outcome = store(checkpoint, plan, item, &writer)?;
        let report = TensorReport::new(item, outcome);
        reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        progress.tensor_done(&item.name, item.num_weights());
        Ok(())
    })?;
    let (weight_map, tensor_bytes, rename) = (plan.weight_map(), plan.tensor_bytes(), archive_name);
    let extras = Extras { checkpoint, side_files: &side_files, weight_map: &weight_map, tensor_bytes, rename };
    let side_bytes = writer.finish(|dir| extras.write(dir))?;
    let mut tensors = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(CompressionReport {
        tensors,
        source_file_bytes: checkpoint.file_bytes(),
        weight_file_bytes: plan.stored_bytes(),
        side_file_bytes: side_bytes,
        copied_weights: side_files.modules,
        left_out: side_files.left_out,
    })
}

/// Stores one tensor; returns its error if it was compressed.
fn store(
    checkpoint: &Checkpoint,
    plan: &Plan,
    item: &PlanItem,
    writer: &ArchiveWriter,
) -> Result<Option<Outcome>, ArchiveError> {
    let bytes = checkpoint.bytes(checkpoint.info(&item.name)?);
    let source_blake3 = blake3_hex(bytes);
    let Decision::Compress(spec) = &item.decision else {
        writer.write_kept(item.shard, &item.name, bytes, source_blake3)?;
        return Ok(None);
    };
    let (_, dtype) = matrix_of(checkpoint, item)?;
    let (packed, outcome) = plan.encode(checkpoint, item, spec, plan.weight(checkpoint, item)?)?;
    let output_loss = outcome.output.map(|output| output.sums.relative_mse());
    let record = Record { dtype, relative_mse: outcome.weight.relative_mse(), output_loss, source_blake3 };
    writer.write_packed(item.shard, &item.name, &packed, record)?;
    Ok(Some(outcome))
}
