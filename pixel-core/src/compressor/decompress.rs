//! An archive back into a dense checkpoint.

use super::compress::RunOptions;
use super::files::{Extras, SideFiles, check_model_output};
use super::progress::Progress;
use super::workers;
use crate::archive::{
    Archive, ArchiveError, CheckpointWriter, FilePlan, FloatType, MANIFEST_HASH_KEY, MANIFEST_KEY, OutputKind,
    PRODUCER, PRODUCER_KEY, ShardWriter, TensorPlan, dense_name,
};
use crate::packed::PackedWeight;
use crate::synthesis::Synthesis;
use std::collections::BTreeMap;
use std::path::Path;

/// Weights that are synthesised before they are written.
const CHUNK_WEIGHTS: usize = 1 << 18;

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
    let mut items = dense_items(archive, dtype)?;
    let (mut files, mut metadata, mut weight_map) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (index, shard) in checkpoint.shards().iter().enumerate() {
        let tensors = items.iter().filter(|item| item.shard == index).map(|item| item.plan.clone()).collect();
        let mut own = shard.metadata.clone();
        own.retain(|key, _| key != MANIFEST_KEY && key != MANIFEST_HASH_KEY);
        own.insert(PRODUCER_KEY.to_owned(), PRODUCER.to_owned());
        let file = FilePlan::new(dense_name(&shard.file_name), tensors, &own)?;
        weight_map.extend(file.tensors().map(|tensor| (tensor.name.clone(), file.file_name.clone())));
        files.push(file);
        metadata.push(own);
    }
    let writer = CheckpointWriter::create(output, OutputKind::of(output), &files, options.overwrite)?;
    items.sort_by_key(|item| std::cmp::Reverse(item.plan.num_bytes()));
    workers::for_each_item(options.threads, &items, output, progress, |item| {
        let file = writer.file(item.shard);
        match item.float {
            Dense::Packed(float) => write_packed(&archive.packed(&item.plan.name)?, &item.plan.name, float, file),
            Dense::Float(from, to) => {
                let (_, bytes) = archive.kept_bytes(&item.plan.name)?;
                write_converted(bytes, from, to, &item.plan.name, file)
            }
            Dense::Same => file.write(&item.plan.name, 0, archive.kept_bytes(&item.plan.name)?.1),
        }?;
        progress.tensor_done(&item.plan.name, item.plan.shape.iter().product::<usize>() as u64);
        Ok(())
    })?;
    let total = items.iter().map(|item| item.plan.num_bytes() as u64).sum();
    let (side_files, rename) = (&side_files, dense_name);
    let extras = Extras { checkpoint, side_files, weight_map: &weight_map, tensor_bytes: total, rename };
    writer.finish(metadata, |dir| extras.write(dir))?;
    Ok(total)
}

/// How a dense tensor is obtained.
enum Dense {
    /// Synthesised.
    Packed(FloatType),
    /// Converted from one float type to another.
    Float(FloatType, FloatType),
    /// Copied.
    Same,
}

struct Item {
    shard: usize,
    plan: TensorPlan,
    float: Dense,
}

fn dense_items(archive: &Archive, dtype: Option<FloatType>) -> Result<Vec<Item>, ArchiveError> {
    let packed = archive.entries().iter().map(|(name, entry)| {
        let float = dtype.unwrap_or(entry.manifest().dtype);
        let shape = <[usize; 2]>::from(entry.header().shape).to_vec();
        let plan = TensorPlan { name: name.clone(), dtype: float.dtype(), shape };
        Ok(Item { shard: entry.shard(), plan, float: Dense::Packed(float) })
    });
    let kept = archive.kept().keys().map(|name| {
        let info = archive.checkpoint().info(name)?;
        let (stored, float) = match (FloatType::of(info.dtype), dtype) {
            (Some(from), Some(to)) if from != to => (to.dtype(), Dense::Float(from, to)),
            _ => (info.dtype, Dense::Same),
        };
        let plan = TensorPlan { name: name.clone(), dtype: stored, shape: info.shape.clone() };
        Ok(Item { shard: info.shard, plan, float })
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
