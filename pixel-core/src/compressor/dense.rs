//! Writing a dense checkpoint, tensor by tensor.

use super::compress::RunOptions;
use super::files::{Extras, SideFiles};
use super::progress::Progress;
use super::workers;
use crate::archive::{
    ArchiveError, Checkpoint, CheckpointWriter, FilePlan, MANIFEST_HASH_KEY, MANIFEST_KEY, OutputKind, PRODUCER,
    PRODUCER_KEY, ShardWriter, TensorPlan, dense_name,
};
use std::collections::BTreeMap;
use std::path::Path;

/// Weights that are computed before they are written.
pub(super) const CHUNK_WEIGHTS: usize = 1 << 18;

/// A tensor to be written, and where its values come from.
pub(super) struct DenseTensor<S> {
    /// The index of its file.
    pub(super) shard: usize,
    pub(super) plan: TensorPlan,
    pub(super) source: S,
}

/// Writes `tensors` to `output`, in files like those of `checkpoint`, with `side_files` beside them; `write` writes one
/// tensor. The metadata name PIXEL as what wrote the files, so that it may replace them. Returns the bytes of the
/// tensors.
///
/// # Errors
/// [`ArchiveError`]; nothing is then left under the final name.
pub(super) fn write_dense<S: Sync>(
    checkpoint: &Checkpoint,
    side_files: &SideFiles,
    mut tensors: Vec<DenseTensor<S>>,
    output: &Path,
    options: RunOptions,
    progress: &dyn Progress,
    write: impl Fn(&DenseTensor<S>, &ShardWriter) -> Result<(), ArchiveError> + Sync,
) -> Result<u64, ArchiveError> {
    let (mut files, mut metadata, mut weight_map) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (index, shard) in checkpoint.shards().iter().enumerate() {
        let plans = tensors.iter().filter(|tensor| tensor.shard == index).map(|tensor| tensor.plan.clone()).collect();
        let mut own = shard.metadata.clone();
        own.retain(|key, _| key != MANIFEST_KEY && key != MANIFEST_HASH_KEY);
        own.insert(PRODUCER_KEY.to_owned(), PRODUCER.to_owned());
        let file = FilePlan::new(dense_name(&shard.file_name), plans, &own)?;
        weight_map.extend(file.tensors().map(|tensor| (tensor.name.clone(), file.file_name.clone())));
        files.push(file);
        metadata.push(own);
    }
    let writer = CheckpointWriter::create(output, OutputKind::of(output), &files, options.overwrite)?;
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.plan.num_bytes()));
    workers::for_each_item(options.threads, &tensors, output, progress, |tensor| {
        write(tensor, writer.file(tensor.shard))?;
        progress.tensor_done(&tensor.plan.name, tensor.plan.shape.iter().product::<usize>() as u64);
        Ok(())
    })?;
    let tensor_bytes = tensors.iter().map(|tensor| tensor.plan.num_bytes() as u64).sum();
    let extras = Extras { checkpoint, side_files, weight_map: &weight_map, tensor_bytes, rename: dense_name };
    writer.finish(metadata, |dir| extras.write(dir))?;
    Ok(tensor_bytes)
}
