//! The operations of compressed layers on every backend of Burn.
//!
//! ```text
//!  PackedWeight ──▶ PatternTensors ──▶ linear(x) = x · Wᵀ        W is never formed
//!                   codes, scales,     synthesize() = W
//!                   dictionary         rows(i) = W[i]
//! ```
//!
//! [`PixelBackend`] is an extension trait. Each operation has a [definition](self) in Burn's own primitives
//! and runs wherever Burn does; Flex and NdArray run the slices code of [`synthesis`](crate::synthesis) on the tensors'
//! own memory, CubeCL kernels run on wgpu, Vulkan, Metal, CUDA and cubecl-cpu from one source, and autodiff gives the
//! gradients of activations, scales and dictionary. [`PatternTensors`] is the entry point.
//!
//! Activations of any float type are taken in f32, and the result has their type. Decoding, rotations, sums and
//! gradients are in f32; products on the CPU backends round activations or tables to 16 bits first, those of many rows
//! on tensor cores both factors to eleven, unless
//! [`Arithmetic::F32`](crate::synthesis::Arithmetic) is asked for or the backend is autodiff.
//!
//! # Example
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Tensor};
//! use pixel_core::backend::PatternTensors;
//! use pixel_core::{MatrixRef, Shape, compress_weight};
//!
//! let data: Vec<f32> = (0..48 * 64).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3)).collect();
//! let weight = MatrixRef::new(Shape::new(48, 64)?, &data)?;
//! let (packed, _) = compress_weight(weight, &"trellis:3:window=12".parse()?, Some(1))?;
//! let device = Device::flex();
//! let weight = PatternTensors::new(&packed, &device)?;
//! let x = Tensor::<2>::ones([4, 64], &device);
//! let y = weight.linear(x.clone());
//! let expected = x.matmul(weight.synthesize().transpose());
//! assert_eq!(y.dims(), [4, 48]);
//! assert!((y - expected).abs().max().into_scalar::<f32>() < 1e-4);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
#[cfg(feature = "autodiff")]
mod autodiff;
#[cfg(feature = "cube")]
mod cube;
mod definition;
mod device;
#[cfg(feature = "autodiff")]
mod gradients;
mod matrix;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod native;
#[cfg_attr(
    feature = "ndarray",
    allow(deprecated, reason = "Burn's ndarray backend is deprecated, and still offered here")
)]
#[cfg_attr(
    not(any(feature = "flex", feature = "ndarray", feature = "cube")),
    allow(unused_variables, reason = "without a backend nothing is dispatched")
)]
mod ops;
mod projection;
mod ready;
mod rotation;
mod tensors;
mod terms;
#[cfg(test)]
mod tests;

pub use attention::{
    Attended, AttentionCache, AttentionInputs, AttentionTensors, HeadNormTensors, Held, HeldTensors, PaddingTensor,
    RotaryTensors, attend,
};
pub use device::{BackendError, check_device, is_host, probe_device};
pub use ops::PixelBackend;
pub use projection::{
    CodedTensors, FeedForwardTensors, NormTensors, OptionalTensor, ProjectionTensors, RotationTables, WeightTensors,
    feed_forward, project,
};
pub use ready::{ReadyFeedForward, ReadyProjection, ReadyWeight};
pub use rotation::{RotationTensors, rotate};
pub use tensors::{LowRankTensors, PatternTensors, ProtectedTensors, match_patterns};

use burn::backend::Dispatch;

/// Which way a rotation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// `x · Q`.
    Forward,
    /// `x · Qᵀ`.
    Inverse,
}
