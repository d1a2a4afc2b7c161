//! The steps of a transformer layer on slices, each one call: what backends on the CPU run.
//!
//! ```text
//!  x ─▶ norm ─▶ rotate ─▶ · [W₀; W₁; W₂]ᵀ ─▶ + bias ─▶ activation ─▶ + residual ─▶ norm ─▶ y        Projection
//! ```
//!
//! Every part but the product is optional. Several weights share one input, rotated and prepared for their kernels
//! once: query, key and value of an attention; gate and up of an MLP.

mod activation;
mod norm;
mod projection;

pub use activation::Activation;
pub use norm::Norm;
pub use projection::Projection;

/// The weights of a [`Projection`], at most: query, key and value.
pub const MAX_WEIGHTS: usize = crate::synthesis::MAX_WEIGHTS;
