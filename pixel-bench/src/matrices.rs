//! Matrices to compress.

use pixel_core::{Matrix, Shape};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// A matrix of independent standard normal weights.
///
/// # Panics
/// If a side is zero.
pub fn gaussian(d_output: usize, d_input: usize, seed: u64) -> Matrix {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    from_fn(d_output, d_input, |_, _| StandardNormal.sample(&mut rng))
}

/// The matrix of `f(row, column)`.
///
/// # Panics
/// If a side is zero.
pub fn from_fn(d_output: usize, d_input: usize, mut f: impl FnMut(usize, usize) -> f32) -> Matrix {
    let shape = Shape::new(d_output, d_input).expect("a shape that is not empty");
    let weights = (0..shape.num_weights()).map(|i| f(i / d_input, i % d_input)).collect();
    Matrix::new(shape, weights).expect("as many weights as the shape has")
}

/// A matrix with a structure, `[n, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// Ones on the diagonal.
    Identity,
    /// The real Fourier (Hartley) matrix, `(cos + sin)(2πij/n)/√n`.
    Fourier,
    /// Eight dense Gaussian blocks on the diagonal.
    BlockDiagonal,
    /// A product of Gaussian factors of rank 8.
    LowRank,
    /// Gaussian, 5 % of the entries.
    Sparse,
    /// Gaussian.
    Random,
}

impl Structure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Identity, Self::Fourier, Self::BlockDiagonal, Self::LowRank, Self::Sparse, Self::Random];

    /// What it is called in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Fourier => "Fourier",
            Self::BlockDiagonal => "block-diagonal",
            Self::LowRank => "low-rank (8)",
            Self::Sparse => "sparse (5 %)",
            Self::Random => "random",
        }
    }

    /// The matrix, `[n, n]`.
    ///
    /// # Panics
    /// If `n` is zero.
    pub fn matrix(self, n: usize, seed: u64) -> Matrix {
        let noise = gaussian(n, n, seed);
        let value = |row, col| noise.as_ref().row(row)[col];
        match self {
            Self::Identity => from_fn(n, n, |row, col| if row == col { 1.0 } else { 0.0 }),
            Self::Fourier => from_fn(n, n, |row, col| {
                let angle = std::f64::consts::TAU * ((row * col) % n) as f64 / n as f64;
                ((angle.cos() + angle.sin()) / (n as f64).sqrt()) as f32
            }),
            Self::BlockDiagonal => {
                let side = n.div_ceil(8);
                from_fn(n, n, |row, col| if row / side == col / side { value(row, col) } else { 0.0 })
            }
            Self::LowRank => {
                let rank = 8.min(n);
                from_fn(n, n, |row, col| (0..rank).map(|k| value(row, k) * value(n - 1 - k, col)).sum())
            }
            Self::Sparse => {
                let chosen = gaussian(n, n, seed ^ 1);
                // 5 % of a normal distribution lies beyond 1.96 standard deviations.
                from_fn(n, n, |row, col| if chosen.as_ref().row(row)[col].abs() > 1.96 { value(row, col) } else { 0.0 })
            }
            Self::Random => noise,
        }
    }
}
