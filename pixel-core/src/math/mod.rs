//! The arithmetic beneath everything else: rotations, linear algebra in one written order, measures of error, and the
//! vector instructions that loops may use.

pub(crate) mod exp;
mod exponent;
pub(crate) mod linalg;
pub mod metrics;
pub mod rotation;
#[doc(hidden)]
pub mod simd;
mod transpose;
pub(crate) mod trigonometry;

pub use exponent::Exponent;
pub use transpose::transposed;
