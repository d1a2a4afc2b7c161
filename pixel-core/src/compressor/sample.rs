//! The error of a plan, measured on samples: what a dry run shows.

use super::plan::{Plan, PlanItem, matrix_of};
use crate::archive::Checkpoint;
use crate::archive::error::ArchiveError;
use crate::matrix::{Matrix, Shape};
use crate::metrics::ErrorSums;
use crate::recipe::Decision;

/// Rows of a sample: two bands of the tallest tile.
const SAMPLE_ROWS: usize = 64;

/// The error of the rows sampled from one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The tensor.
    pub name: String,
    /// The codec as text.
    pub codec: String,
    /// Rows that were compressed.
    pub rows: usize,
    /// Their error.
    pub error: ErrorSums,
    /// The error of their outputs, if the weight is calibrated.
    pub output: Option<ErrorSums>,
}

/// Compresses some rows out of the middle of `count` tensors, evenly spread over those that `plan` compresses.
///
/// # Errors
/// [`ArchiveError`] as for the real run; weights outside the samples are not looked at.
pub fn sample_errors(checkpoint: &Checkpoint, plan: &Plan, count: usize) -> Result<Vec<Sample>, ArchiveError> {
    let compressed: Vec<&PlanItem> =
        plan.items().iter().filter(|item| matches!(item.decision, Decision::Compress { .. })).collect();
    let count = count.min(compressed.len());
    (0..count).map(|i| sample(checkpoint, plan, compressed[i * compressed.len() / count])).collect()
}

fn sample(checkpoint: &Checkpoint, plan: &Plan, item: &PlanItem) -> Result<Sample, ArchiveError> {
    let Decision::Compress { codec, .. } = &item.decision else { unreachable!("only compressed tensors are sampled") };
    let weight = middle_rows(checkpoint, item)?;
    let rows = weight.shape().d_output();
    let (_, outcome) = plan.encode(checkpoint, item, weight)?;
    let output = outcome.output.map(|output| output.sums);
    Ok(Sample { name: item.name.clone(), codec: codec.to_string(), rows, error: outcome.weight, output })
}

/// Rows out of the middle of a weight, as many as a sample has.
fn middle_rows(checkpoint: &Checkpoint, item: &PlanItem) -> Result<Matrix, ArchiveError> {
    let info = checkpoint.info(&item.name)?;
    let (shape, float) = matrix_of(checkpoint, item)?;
    let rows = shape.d_output().min(SAMPLE_ROWS);
    let row_bytes = shape.d_input() * float.size();
    let first = (shape.d_output() - rows) / 2;
    let sampled = Shape::new(rows, shape.d_input()).map_err(|source| ArchiveError::Weight {
        path: checkpoint.path_of(info).to_owned(),
        tensor: item.name.clone(),
        source: source.into(),
    })?;
    let mut weight = Matrix::zeros(sampled);
    float.read(&checkpoint.bytes(info)[first * row_bytes..][..rows * row_bytes], weight.as_mut_slice());
    Ok(weight)
}
