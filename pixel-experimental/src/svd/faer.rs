//! faer: dense linear algebra in Rust.

use super::{Svd, SvdError, SvdSolver, prepare};
use crate::dense::row_major;
use faer::MatRef;
use pixel_core::MatrixRef;

/// All of the decomposition by bidiagonalisation and divide and conquer, on one thread: results do not depend on the
/// number of threads. Another processor's registers may round otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaerSvd;

impl SvdSolver for FaerSvd {
    fn name(&self) -> &'static str {
        "faer"
    }

    fn svd(&self, matrix: MatrixRef<'_>, rank: usize) -> Result<Svd, SvdError> {
        let (values, unit) = prepare(matrix, rank)?;
        let shape = matrix.shape();
        let a = MatRef::from_row_major_slice(&values, shape.d_output(), shape.d_input());
        let failed = |error| SvdError::Failed { solver: "faer", message: format!("{error:?}") };
        let svd = a.thin_svd().map_err(failed)?;
        let s: Vec<f32> = svd.S().column_vector().iter().copied().collect();
        let (u, vt) = (row_major(svd.U()), row_major(svd.V().transpose()));
        Ok(Svd::leading(shape, &u, &s, &vt, rank, unit))
    }
}
