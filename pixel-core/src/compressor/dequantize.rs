//! A checkpoint that another tool has quantised into a dense one.

use super::compress::RunOptions;
use super::dense::{CHUNK_WEIGHTS, DenseTensor, write_dense};
use super::files::{SideFiles, check_model_output};
use super::progress::Progress;
use crate::archive::{ArchiveError, Checkpoint, FloatType, QuantisedCheckpoint, ShardWriter, StoredWeight, TensorPlan};
use std::path::{Path, PathBuf};

/// What was made of a quantised checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DequantizeReport {
    /// Weights that were quantised.
    pub weights: usize,
    /// Tensors that were copied.
    pub copied: usize,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Files beside the weights that were not copied.
    pub left_out: Vec<PathBuf>,
}

/// Writes `checkpoint`, whose weights another tool has [quantised](QuantisedCheckpoint), to `output` with the values
/// that they stand for: a file if that ends in `.safetensors`, a directory otherwise. Weights that were quantised have
/// the type `dtype`, other tensors are copied; `config.json` says nothing of a quantisation any more.
///
/// # Errors
/// [`ArchiveError`], [`ArchiveError::Overflow`] among them for values that `dtype` cannot hold, infinite ones included;
/// nothing is then left under the final name. Codes that stand for no number stay NaN, which `compress` refuses by
/// name.
pub fn dequantize_checkpoint(
    checkpoint: &Checkpoint,
    output: impl AsRef<Path>,
    dtype: FloatType,
    options: RunOptions,
    progress: &dyn Progress,
) -> Result<DequantizeReport, ArchiveError> {
    let output = output.as_ref();
    check_model_output(checkpoint, [], output, options.overwrite)?;
    let quantised = QuantisedCheckpoint::of(checkpoint)?;
    let mut side_files = SideFiles::of(checkpoint)?;
    side_files.leave_out(QuantisedCheckpoint::is_obsolete);
    if let Some((path, text)) = quantised.dense_config(dtype) {
        side_files.replace(path, text);
    }
    let mut tensors = Vec::new();
    for (name, shape, codes) in quantised.weights() {
        let plan = TensorPlan { name: name.to_owned(), dtype: dtype.dtype(), shape: shape.to_vec() };
        tensors.push(DenseTensor { shard: checkpoint.info(codes)?.shard, plan, source: Source::Quantised });
    }
    let weights = tensors.len();
    for name in quantised.others() {
        let info = checkpoint.info(name)?;
        let plan = TensorPlan { name: name.to_owned(), dtype: info.dtype, shape: info.shape.clone() };
        tensors.push(DenseTensor { shard: info.shard, plan, source: Source::Copied });
    }
    let copied = tensors.len() - weights;
    let tensor_bytes = write_dense(checkpoint, &side_files, tensors, output, options, progress, |tensor, file| {
        let name = &tensor.plan.name;
        match tensor.source {
            Source::Quantised => write_weight(&quantised.weight(name)?, name, dtype, file),
            Source::Copied => file.write(name, 0, checkpoint.bytes(checkpoint.info(name)?)),
        }
    })?;
    Ok(DequantizeReport { weights, copied, tensor_bytes, left_out: side_files.left_out })
}

/// Where the values of a tensor come from.
enum Source {
    Quantised,
    Copied,
}

/// Computes a weight some rows at a time.
fn write_weight(
    weight: &StoredWeight<'_>,
    name: &str,
    dtype: FloatType,
    file: &ShardWriter,
) -> Result<(), ArchiveError> {
    let [m, n] = weight.shape();
    let rows_at_once = (CHUNK_WEIGHTS / n).max(1);
    let (mut values, mut bytes, mut offset) = (Vec::new(), Vec::new(), 0);
    for first in (0..m).step_by(rows_at_once) {
        let rows = first..(first + rows_at_once).min(m);
        values.resize(rows.len() * n, 0.0);
        weight.read_rows(rows, &mut values);
        if let Some(&value) = values.iter().find(|value| value.abs() > dtype.max()) {
            let (path, tensor) = (file.path().to_owned(), name.to_owned());
            return Err(ArchiveError::Overflow { path, tensor, value, dtype: dtype.dtype() });
        }
        bytes.clear();
        dtype.write(&values, &mut bytes);
        file.write(name, offset, &bytes)?;
        offset += bytes.len();
    }
    Ok(())
}
