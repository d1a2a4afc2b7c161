//! An archive back into a dense checkpoint.

use super::compress::{RunOptions, Target};
use super::files::{SideFiles, check_overlap};
use super::progress::Progress;
use super::workers;
use crate::archive::error::ArchiveError;
use crate::archive::shard_writer::{ShardWriter, TensorPlan, header, in_file_order};
use crate::archive::{Archive, FloatType, MANIFEST_HASH_KEY, MANIFEST_KEY};
use crate::packed::PackedWeight;
use crate::synthesis::Synthesis;
use std::collections::BTreeMap;
use std::path::Path;

/// Weights that are synthesised before they are written.
const CHUNK_WEIGHTS: usize = 1 << 18;

/// Writes the dense weights of `archive` to `output`: a file if that ends in `.safetensors`, a directory otherwise.
///
/// Every weight takes the type that it had in the source, or `dtype`, which then holds for all float tensors. Hashes are
/// checked on the way. Returns the bytes of the weights.
///
/// # Errors
/// [`ArchiveError`]; nothing is then left under the final name.
pub fn decompress_archive(
    archive: &Archive,
    output: &Path,
    dtype: Option<FloatType>,
    options: RunOptions,
    progress: &dyn Progress,
) -> Result<u64, ArchiveError> {
    let checkpoint = archive.checkpoint();
    check_overlap(checkpoint.root(), output)?;
    let target = Target::new(output, checkpoint, options.overwrite)?;
    let mut items = dense_items(archive, dtype)?;
    let mut writers = Vec::new();
    let mut weight_map = BTreeMap::new();
    for (index, shard) in checkpoint.shards().iter().enumerate() {
        let tensors = items.iter().filter(|item| item.shard == index).map(|item| item.plan.clone()).collect();
        let mut metadata = shard.metadata.clone();
        metadata.retain(|key, _| key != MANIFEST_KEY && key != MANIFEST_HASH_KEY);
        let tensors = in_file_order(tensors);
        weight_map.extend(tensors.iter().map(|(tensor, _)| (tensor.name.clone(), shard.file_name.clone())));
        let header_len = header(&tensors, &metadata).len();
        writers.push((ShardWriter::create(&target.shard_path(&shard.file_name), tensors, header_len)?, metadata));
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.plan.num_bytes()));
    workers::run(&workers::pool(options.threads), &items, output, progress, |item| {
        let writer = &writers[item.shard].0;
        match item.float {
            Dense::Packed(float) => write_packed(&archive.packed(&item.plan.name)?, &item.plan.name, float, writer),
            Dense::Float(from, to) => {
                let (_, bytes) = archive.kept_bytes(&item.plan.name)?;
                write_converted(bytes, from, to, &item.plan.name, writer)
            }
            Dense::Same => writer.write(&item.plan.name, 0, archive.kept_bytes(&item.plan.name)?.1),
        }?;
        progress.tensor_done(&item.plan.name, item.plan.shape.iter().product::<usize>() as u64);
        Ok(())
    })?;
    for (writer, metadata) in writers {
        writer.finish(&metadata)?;
    }
    let total = items.iter().map(|item| item.plan.num_bytes() as u64).sum();
    target.finish_with(checkpoint, &SideFiles::of(checkpoint)?, weight_map, total)?;
    Ok(total)
}

/// How a dense tensor comes about.
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
        let shape = <[usize; 2]>::from(entry.manifest().shape).to_vec();
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
        encode_checked(weights, float, name, writer, &mut bytes)?;
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
        out.clear();
        encode_checked(&values, to, name, writer, &mut out)?;
        writer.write(name, offset, &out)?;
        offset += out.len();
    }
    Ok(())
}

/// Appends `values` to `bytes`, and refuses one that is finite but beyond the range of the type.
fn encode_checked(
    values: &[f32],
    float: FloatType,
    name: &str,
    writer: &ShardWriter,
    bytes: &mut Vec<u8>,
) -> Result<(), ArchiveError> {
    const F16_LIMIT: f32 = 65520.0;
    if float == FloatType::F16
        && let Some(&value) = values.iter().find(|v| v.is_finite() && v.abs() >= F16_LIMIT)
    {
        return Err(ArchiveError::Overflow { path: writer.path().to_owned(), tensor: name.to_owned(), value });
    }
    float.write(values, bytes);
    Ok(())
}
