//! The error of a plan, measured on samples: what a dry run shows.

use crate::archive::{ArchiveError, Checkpoint};
use crate::math::metrics::ErrorSums;
use crate::matrix::{Matrix, Shape};
use crate::plan::{Plan, PlanItem, matrix_of, weight_error};

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
/// [`ArchiveError`] as for the real run; weights outside the samples are not read.
pub fn sample_errors(checkpoint: &Checkpoint, plan: &Plan, count: usize) -> Result<Vec<Sample>, ArchiveError> {
    let compressed: Vec<&PlanItem> = plan.items().iter().filter(|item| item.decision.coding().is_some()).collect();
    let count = count.min(compressed.len());
    (0..count).map(|i| sample(checkpoint, plan, compressed[i * compressed.len() / count])).collect()
}

fn sample(checkpoint: &Checkpoint, plan: &Plan, item: &PlanItem) -> Result<Sample, ArchiveError> {
    let spec = item.decision.coding().expect("only compressed tensors are sampled");
    let rows = middle_rows(checkpoint, item)?;
    let codes = match spec.low_rank {
        None => rows.clone(),
        Some(_) => {
            // The low-rank part is fitted to all rows; the codes are measured on some rows of its residual.
            let residual = plan.residual(checkpoint, item, plan.weight(checkpoint, item)?)?;
            middle(&residual, rows.shape())
        }
    };
    let (_, outcome) = plan.encode(checkpoint, item, &spec.clone().with_low_rank(None), codes)?;
    let power = rows.as_slice().iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    let error = ErrorSums { power, ..outcome.weight };
    let output = match outcome.output {
        Some(output) => {
            let power = plan.moments(&item.name)?.map(|moments| moments.output_power(rows.as_ref()));
            power.map(|power| ErrorSums { power, ..output.sums })
        }
        None => None,
    };
    Ok(Sample { name: item.name.clone(), codec: spec.codec.to_string(), rows: rows.shape().d_output(), error, output })
}

/// The rows of `shape` out of the middle of `weight`, those of [`middle_rows`].
fn middle(weight: &Matrix, shape: Shape) -> Matrix {
    let first = (weight.shape().d_output() - shape.d_output()) / 2 * shape.d_input();
    let rows = &weight.as_slice()[first..][..shape.num_weights()];
    Matrix::new(shape, rows.to_vec()).expect("rows of the weight")
}

/// Rows out of the middle of a weight, as many as a sample has.
fn middle_rows(checkpoint: &Checkpoint, item: &PlanItem) -> Result<Matrix, ArchiveError> {
    let info = checkpoint.info(&item.name)?;
    let (shape, float) = matrix_of(checkpoint, item)?;
    let rows = shape.d_output().min(SAMPLE_ROWS);
    let row_bytes = shape.d_input() * float.size();
    let first = (shape.d_output() - rows) / 2;
    let sampled = Shape::new(rows, shape.d_input()).map_err(weight_error(checkpoint, item))?;
    let mut weight = Matrix::zeros(sampled);
    float.read(&checkpoint.bytes(info)[first * row_bytes..][..rows * row_bytes], weight.as_mut_slice());
    Ok(weight)
}
