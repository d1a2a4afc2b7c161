//! Products and factors of dense matrices on the host, by faer, on one thread.

use crate::svd::SvdError;
use faer::{Mat, MatRef, Side};
use pixel_core::{Matrix, Moments, Shape};

/// A matrix of sides above 0.
pub(crate) fn matrix(rows: usize, columns: usize, values: Vec<f32>) -> Matrix {
    Shape::new(rows, columns).and_then(|shape| Matrix::new(shape, values)).expect("the shape of its values")
}

/// `weight` with `columns` at zero.
pub(crate) fn without_columns(mut weight: Matrix, columns: &[u32]) -> Matrix {
    let n = weight.shape().d_input();
    for row in weight.as_mut_slice().chunks_exact_mut(n) {
        columns.iter().for_each(|&column| row[column as usize] = 0.0);
    }
    weight
}

/// The values row after row.
pub(crate) fn row_major(values: MatRef<'_, f32>) -> Vec<f32> {
    values.row_iter().flat_map(|row| row.iter().copied()).collect()
}

fn view(matrix: &Matrix) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(matrix.as_slice(), matrix.shape().d_output(), matrix.shape().d_input())
}

fn owned(values: Mat<f32>) -> Matrix {
    matrix(values.nrows(), values.ncols(), row_major(values.as_ref()))
}

/// `a · b`.
pub(crate) fn product(a: &Matrix, b: &Matrix) -> Matrix {
    owned(view(a) * view(b))
}

/// `aᵀ · b`.
pub(crate) fn transposed_product(a: &Matrix, b: &Matrix) -> Matrix {
    owned(view(a).transpose() * view(b))
}

/// An orthonormal basis of the columns of `a` `[m, l]`, `m ≥ l`: the thin `Q` of its QR decomposition.
#[cfg(feature = "burn")]
pub(crate) fn orthonormal(a: &Matrix) -> Matrix {
    owned(view(a).qr().compute_thin_Q())
}

/// What is added to the diagonal of moments before they are factored, in units of its mean: above the rounding of f32,
/// in which the root is used, and a thousandth of what error feedback adds.
const DAMPING: f64 = 1e-5;

/// A square root `C` of the moments, `H ≈ C·Cᵀ`, by Cholesky, `[n, n]`; damped, more so where rounding has made `H`
/// indefinite. The identity where `H` is zero.
pub(crate) fn square_root(moments: &Moments) -> Matrix {
    let n = moments.d_input();
    let mean = moments.mean_diagonal();
    let mut damping = DAMPING;
    while mean > 0.0 && damping < 1.0 {
        let entry = |i: usize, j: usize| (moments.at(i, j) + if i == j { damping * mean } else { 0.0 }) / mean;
        if let Ok(factor) = Mat::<f64>::from_fn(n, n, entry).llt(Side::Lower) {
            let factor = factor.L();
            let entry = |i: usize, j: usize| if j <= i { (factor[(i, j)] * mean.sqrt()) as f32 } else { 0.0 };
            return matrix(n, n, (0..n * n).map(|at| entry(at / n, at % n)).collect());
        }
        damping *= 4.0;
    }
    matrix(n, n, (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect())
}

/// The `count` largest eigenvalues of the moments over their sum, descending; all zero where the moments are.
pub(crate) fn eigenvalue_shares(moments: &Moments, count: usize) -> Result<Vec<f64>, SvdError> {
    let n = moments.d_input();
    let sum = moments.mean_diagonal() * n as f64;
    if sum == 0.0 {
        return Ok(vec![0.0; count.min(n)]);
    }
    let values = Mat::<f64>::from_fn(n, n, |i, j| moments.at(i, j) / sum).self_adjoint_eigenvalues(Side::Lower);
    let mut values = values.map_err(|error| SvdError::Failed { solver: "faer", message: format!("{error:?}") })?;
    values.sort_by(|a, b| b.total_cmp(a));
    values.truncate(count);
    Ok(values)
}
