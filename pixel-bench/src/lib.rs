//! Workloads that the benchmarks and the programs share, and how they are timed.
//!
//! [`contenders`] are the products that the report and the criterion benches compare, [`measure`] times them in turns,
//! [`stream`] finds what the machine's memory gives, and [`roofline`] draws one against the other. [`lines`] is for
//! programs that scripts drive.

pub mod contenders;
pub mod least_squares;
pub mod lines;
pub mod matrices;
pub mod measure;
pub mod roofline;
pub mod stream;

pub use matrices::gaussian;

use pixel_experimental::svd::{FaerSvd, RandomizedSvd, SvdSolver};

/// The shapes `[d_output, d_input]` of the products: two of a model of 7 billion parameters, one of SmolLM2-135M.
pub const SHAPES: [[usize; 2]; 3] = [[4096, 4096], [4096, 11008], [576, 1536]];

/// The batches of the products: a token, a few, a prompt.
pub const BATCHES: [usize; 3] = [1, 8, 128];

/// The solvers of singular value decompositions that are compiled in, faer's first; random projections run on the CPU.
pub fn solvers() -> Vec<Box<dyn SvdSolver>> {
    vec![
        Box::new(FaerSvd),
        #[cfg(feature = "lapack")]
        Box::new(pixel_experimental::svd::LapackSvd),
        Box::new(RandomizedSvd::new(&burn::tensor::Device::flex())),
    ]
}
