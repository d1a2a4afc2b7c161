//! Workloads that the benchmarks and the programs share.

use pixel_core::{Matrix, Shape};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

/// A matrix of independent standard normal weights.
///
/// # Panics
/// If a side is zero.
pub fn gaussian(d_output: usize, d_input: usize, seed: u64) -> Matrix {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let shape = Shape::new(d_output, d_input).expect("a shape that is not empty");
    let weights = (0..shape.num_weights()).map(|_| StandardNormal.sample(&mut rng)).collect();
    Matrix::new(shape, weights).expect("as many weights as the shape has")
}
