//! What several test programs share.

use pixel_core::compressor::{FitJob, LowRankFitter};
use pixel_core::{LowRank, Matrix, Outcome, PackedWeight, Shape, WeightError, compress_beside};

/// A fitter that fits nothing: factors that depend on their places alone.
#[derive(Debug)]
pub(crate) struct FixedFactors;

impl FixedFactors {
    fn part(shape: Shape, rank: usize) -> LowRank {
        let matrix = |m: usize, n: usize| {
            let values = (0..m * n).map(|i| (i * 37 % 23) as f32 / 11.0 - 1.0).collect();
            Matrix::new(Shape::new(m, n).unwrap(), values).unwrap()
        };
        LowRank { up: matrix(shape.d_output(), rank), down: matrix(rank, shape.d_input()) }
    }
}

impl LowRankFitter for FixedFactors {
    fn compress(&self, weight: Matrix, job: FitJob<'_>) -> Result<(PackedWeight, Outcome), WeightError> {
        let part = Self::part(weight.shape(), job.low_rank.rank);
        let part = Some((&part, job.low_rank.storage));
        compress_beside(weight, job.codec, job.moments.filter(|_| job.feedback), job.options, part)
    }

    fn residual(&self, mut weight: Matrix, job: FitJob<'_>) -> Result<Matrix, WeightError> {
        assert_eq!(job.options.rotation, None, "these factors know no rotation");
        Self::part(weight.shape(), job.low_rank.rank).add_scaled(&mut weight, -1.0);
        Ok(weight)
    }

    fn peak_bytes(&self, shape: Shape) -> u64 {
        4 * shape.num_weights() as u64
    }
}
