//! LAPACK, through `ndarray-linalg`.

use super::{Svd, SvdError, SvdSolver, prepare};
use ndarray::ArrayView2;
use ndarray_linalg::{JobSvd, SVDDC};
use pixel_core::MatrixRef;

/// All of the decomposition by `sgesdd`, with as many threads as the library uses (`OPENBLAS_NUM_THREADS`).
#[derive(Debug, Clone, Copy, Default)]
pub struct LapackSvd;

impl SvdSolver for LapackSvd {
    fn name(&self) -> &'static str {
        "lapack"
    }

    fn svd(&self, matrix: MatrixRef<'_>, rank: usize) -> Result<Svd, SvdError> {
        let (values, unit) = prepare(matrix, rank)?;
        let shape = matrix.shape();
        let failed = |message: String| SvdError::Failed { solver: "lapack", message };
        let a = ArrayView2::from_shape((shape.d_output(), shape.d_input()), &values);
        let a = a.map_err(|error| failed(error.to_string()))?;
        let (u, s, vt) = a.svddc(JobSvd::Some).map_err(|error| failed(error.to_string()))?;
        let (Some(u), Some(vt)) = (u, vt) else { return Err(failed("no singular vectors".into())) };
        // Whatever the layout, iteration is row after row.
        let (u, vt): (Vec<f32>, Vec<f32>) = (u.iter().copied().collect(), vt.iter().copied().collect());
        Ok(Svd::leading(shape, &u, &s.to_vec(), &vt, rank, unit))
    }
}
