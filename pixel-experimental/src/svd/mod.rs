//! Singular value decompositions, by solvers behind one small trait.
//!
//! | solver | what it is | feature |
//! |---|---|---|
//! | [`FaerSvd`] | all of the decomposition, in Rust; the default | – |
//! | `LapackSvd` | all of it, by LAPACK's `gesdd` | `lapack` |
//! | `RandomizedSvd` | the leading part, by matrix products on any Burn device | `burn` |

mod faer;
#[cfg(feature = "lapack")]
mod lapack;
#[cfg(feature = "burn")]
mod randomized;

pub use self::faer::FaerSvd;
#[cfg(feature = "lapack")]
pub use lapack::LapackSvd;
#[cfg(feature = "burn")]
pub use randomized::RandomizedSvd;

use crate::dense::matrix;
use pixel_core::{LowRank, Matrix, MatrixRef, Shape, WeightError};
use std::borrow::Cow;

/// The leading part of a singular value decomposition, `A ≈ U·diag(σ)·Vᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// `U`, `[d_output, rank]`, its columns orthonormal.
    pub u: Matrix,
    /// `σ`, `[rank]`, descending.
    pub singular_values: Vec<f64>,
    /// `Vᵀ`, `[rank, d_input]`, its rows orthonormal.
    pub vt: Matrix,
}

impl Svd {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.singular_values.len()
    }

    /// `U·diag(σ)` and `Vᵀ`.
    pub fn into_low_rank(self) -> LowRank {
        let rank = self.rank();
        let mut up = self.u;
        for row in up.as_mut_slice().chunks_exact_mut(rank) {
            row.iter_mut().zip(&self.singular_values).for_each(|(u, s)| *u = (f64::from(*u) * s) as f32);
        }
        LowRank { up, down: self.vt }
    }

    /// The first `rank` triplets of row-major `u` `[m, k]` and `vt` `[k, n]`; singular values times `unit`.
    fn leading(shape: Shape, u: &[f32], s: &[f32], vt: &[f32], rank: usize, unit: f64) -> Self {
        let (m, n, k) = (shape.d_output(), shape.d_input(), s.len());
        let u = u.chunks_exact(k).flat_map(|row| &row[..rank]).copied().collect();
        Self {
            u: matrix(m, rank, u),
            singular_values: s[..rank].iter().map(|&s| f64::from(s) * unit).collect(),
            vt: matrix(rank, n, vt[..rank * n].to_vec()),
        }
    }
}

/// Why there is no decomposition.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SvdError {
    /// An entry is NaN or infinite.
    #[error("the entry at row {row}, column {col} is {value}")]
    NotFinite {
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// Its value.
        value: f32,
    },
    /// No triplet is asked for, or more than there are.
    #[error("rank {rank} is outside 1..={largest}, as the matrix is {shape}")]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// The shorter side.
        largest: usize,
        /// The shape of the matrix.
        shape: Shape,
    },
    /// The solver gave up.
    #[error("{solver}: {message}")]
    Failed {
        /// The solver.
        solver: &'static str,
        /// Its message.
        message: String,
    },
}

impl From<SvdError> for WeightError {
    fn from(error: SvdError) -> Self {
        match error {
            SvdError::NotFinite { row, col, value } => Self::NotFinite { row, col, value },
            SvdError::Rank { .. } => Self::Decomposition { solver: "any solver".into(), message: error.to_string() },
            SvdError::Failed { solver, message } => Self::Decomposition { solver: solver.into(), message },
        }
    }
}

/// Decomposes matrices.
pub trait SvdSolver: std::fmt::Debug + Send + Sync {
    /// What it is called in tables and messages.
    fn name(&self) -> &'static str;

    /// The `rank` leading singular triplets of `matrix`. What is computed is computed in f32.
    ///
    /// # Errors
    /// [`SvdError`] for an entry that is not finite, a rank outside 1 to the shorter side, or no convergence.
    fn svd(&self, matrix: MatrixRef<'_>, rank: usize) -> Result<Svd, SvdError>;
}

/// Checks rank and entries, and brings the largest entry into [1, 2) by a power of two, which is returned: squares of
/// entries at either end of f32's range would leave it.
fn prepare(matrix: MatrixRef<'_>, rank: usize) -> Result<(Cow<'_, [f32]>, f64), SvdError> {
    let shape = matrix.shape();
    let largest = shape.d_output().min(shape.d_input());
    if !(1..=largest).contains(&rank) {
        return Err(SvdError::Rank { rank, largest, shape });
    }
    let values = matrix.as_slice();
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let n = shape.d_input();
        return Err(SvdError::NotFinite { row: at / n, col: at % n, value: values[at] });
    }
    let most = f64::from(values.iter().fold(0.0f32, |most, value| most.max(value.abs())));
    let unit = if most == 0.0 { 1.0 } else { most.log2().floor().exp2() };
    if (1e-6..1e6).contains(&unit) {
        return Ok((Cow::Borrowed(values), 1.0));
    }
    Ok((values.iter().map(|&value| (f64::from(value) / unit) as f32).collect(), unit))
}
