//! An archive back into a dense checkpoint.

use super::compress::RunOptions;
use super::dense::{CHUNK_WEIGHTS, DenseTensor, write_dense};
use super::files::{SideFiles, check_model_output};
use super::progress::Progress;
use crate::archive::{Archive, ArchiveError, FloatType, ShardWriter, TensorPlan};
use crate::packed::PackedWeight;
use crate::synthesis::Synthesis;
use std::path::Path;

/// Writes the dense weights of `archive` to `output`: a file if that ends in `.safetensors`, a directory otherwise.
///
/// Every weight takes the type that it had in the source, or `dtype`, which then holds for all float tensors. Hashes
/// are checked on the way. The metadata name PIXEL as what wrote the files, so that it may replace them. Returns the
/// bytes of the weights.
///
/// # Errors
/// [`ArchiveError`]; nothing is then left under the final name.
pub fn decompress_archive(
    archive: &Archive,
    output: impl AsRef<Path>,
    dtype: Option<FloatType>,
    options: RunOptions,
    progress: &dyn Progress,
) -> Result<u64, ArchiveError> {
    let (checkpoint, output) = (archive.checkpoint(), output.as_ref());
    check_model_output(checkpoint, [], output, options.overwrite)?;
    let side_files = SideFiles::of(checkpoint)?;
    let tensors = dense_tensors(archive, dtype)?;
    write_dense(checkpoint, &side_files, tensors, output, options, progress, |tensor, file| {
        let name = &tensor.plan.name;
        match tensor.source {
            Source::Packed(float) => write_packed(&archive.packed(name)?, name, float, file),
            Source::Float(from, to) => write_converted(archive.kept_bytes(name)?.1, from, to, name, file),
            Source::Same => file.write(name, 0, archive.kept_bytes(name)?.1),
        }
    })
}

/// How a dense tensor is obtained.
enum Source {
    /// Synthesised.
    Packed(FloatType),
    /// Converted from one float type to another.
    Float(FloatType, FloatType),
    /// Copied.
    Same,
}

fn dense_tensors(archive: &Archive, dtype: Option<FloatType>) -> Result<Vec<DenseTensor<Source>>, ArchiveError> {
    let packed = archive.entries().iter().map(|(name, entry)| {
        let float = dtype.unwrap_or(entry.manifest().dtype);
        let shape = <[usize; 2]>::from(entry.header().shape).to_vec();
        let plan = TensorPlan { name: name.clone(), dtype: float.dtype(), shape };
        Ok(DenseTensor { shard: entry.shard(), plan, source: Source::Packed(float) })
    });
    let kept = archive.kept().keys().map(|name| {
        let info = archive.checkpoint().info(name)?;
        let (stored, source) = match (FloatType::of(info.dtype), dtype) {
            (Some(from), Some(to)) if from != to => (to.dtype(), Source::Float(from, to)),
            _ => (info.dtype, Source::Same),
        };
        let plan = TensorPlan { name: name.clone(), dtype: stored, shape: info.shape.clone() };
        Ok(DenseTensor { shard: info.shard, plan, source })
    });
    packed.chain(kept).collect()
}

/// Synthesises a weight some bands at a time.
fn write_packed(packed: &PackedWeight, name: &str, float: FloatType, writer: &ShardWriter) -> Result<(), ArchiveError> {
    let synthesis = Synthesis::new(packed);
    let (height, shape) = (synthesis.band_height(), packed.shape());
    let mut scratch = synthesis.scratch();
    let bands_at_once = (CHUNK_WEIGHTS / (height * shape.d_input())).max(1);
    let num_bands = shape.d_output().div_ceil(height);
    let mut weights = vec![0.0; (bands_at_once * height).min(shape.d_output()) * shape.d_input()];
    let (mut bytes, mut offset) = (Vec::new(), 0);
    for first in (0..num_bands).step_by(bands_at_once) {
        let rows = (bands_at_once * height).min(shape.d_output() - first * height);
        let weights = &mut weights[..rows * shape.d_input()];
        for (i, rows) in weights.chunks_mut(height * shape.d_input()).enumerate() {
            synthesis.band(first + i, rows, &mut scratch);
        }
        bytes.clear();
        // A reproduction is an estimate: a value beyond the range of the type is clamped to the nearest one.
        weights.iter_mut().for_each(|w| *w = w.clamp(-float.max(), float.max()));
        float.write(weights, &mut bytes);
        writer.write(name, offset, &bytes)?;
        offset += bytes.len();
    }
    Ok(())
}

fn write_converted(
    bytes: &[u8],
    from: FloatType,
    to: FloatType,
    name: &str,
    writer: &ShardWriter,
) -> Result<(), ArchiveError> {
    let (mut offset, mut out) = (0, Vec::new());
    for chunk in bytes.chunks(CHUNK_WEIGHTS * from.size()) {
        let mut values = vec![0.0; chunk.len() / from.size()];
        from.read(chunk, &mut values);
        check_range(chunk, from, &values, to, name, writer)?;
        out.clear();
        to.write(&values, &mut out);
        writer.write(name, offset, &out)?;
        offset += out.len();
    }
    Ok(())
}

/// Refuses a value that is finite in the archive but beyond the range of the type asked for.
fn check_range(
    bytes: &[u8],
    from: FloatType,
    values: &[f32],
    to: FloatType,
    name: &str,
    writer: &ShardWriter,
) -> Result<(), ArchiveError> {
    let was_infinite = |i: usize| from == FloatType::F64 && !f64::from_le_bytes(bytes.as_chunks().0[i]).is_finite();
    let beyond = |(i, value): (usize, &f32)| {
        let limit =
            if value.is_infinite() { !was_infinite(i) && from == FloatType::F64 } else { value.abs() > to.max() };
        limit.then_some(*value)
    };
    match values.iter().enumerate().find_map(beyond) {
        None => Ok(()),
        Some(value) => Err(ArchiveError::Overflow {
            path: writer.path().to_owned(),
            tensor: name.to_owned(),
            value,
            dtype: to.dtype(),
        }),
    }
}
