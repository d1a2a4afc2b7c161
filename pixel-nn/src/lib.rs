//! Burn modules whose weights are patterns: indices and scales at 1 to 4 bits a weight, synthesised on demand.
//!
//! ```text
//!  a model that exists ──▶ replace_linear_layers ──▶ the same types, weights synthesised by val()
//!  Linear, Embedding   ──▶ from_linear, …        ──▶ PIXELLinear, PIXELEmbedding: products straight from the codes
//!  an archive          ──▶ ArchiveStore, from_archive ──▶ the same
//! ```
//!
//! # Example
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::nn::LinearConfig;
//! use burn::tensor::{Device, Tensor};
//! use pixel_nn::{PIXELLinear, PixelModule};
//!
//! let device = Device::flex();
//! let dense = LinearConfig::new(256, 128).init(&device);
//! let (layer, error) = PIXELLinear::from_linear(&dense, &"trellis:4:window=12".parse()?, 0)?;
//! assert!(error.relative_mse() < 0.006 && layer.bits_per_weight() < 4.1);
//! let x = Tensor::<2>::ones([8, 256], &device);
//! let difference = layer.forward(x.clone()) - layer.to_dense().forward(x);
//! assert!(difference.abs().max().into_scalar::<f32>() < 1e-3);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Debug builds
//! Coding a weight is a search, which takes a hundred times as long without the optimiser. A debug build optimises its
//! dependencies if its `Cargo.toml` says
//! ```toml
//! [profile.dev.package."*"]
//! opt-level = 2
//! ```
//!
//! # Where to start
//! | for | see |
//! |---|---|
//! | a model that exists, its types unchanged | [`replace_linear_layers`], [`ReplaceConfig`] |
//! | the same, calibrated on batches | [`compress_model`], [`calibration`] |
//! | one layer | [`PIXELLinear`], [`PIXELEmbedding`], [`PIXELAttention`], [`Projection`] |
//! | files that the `pixel` binary reads | [`ArchiveStore`], [`Archive`] |
//! | how a weight is coded | [`CodecSpec`], [`CodingSpec`], [`Encoder`] |
//! | patterns of one's own | [`PatternDictionary`], [`ReplaceConfig::with_dictionary`] |
//! | everything at once | [`prelude`] |
//!
//! # Features
//! `flex` (default), `ndarray`, `wgpu`, `vulkan`, `metal`, `cuda`, `cpu`: Burn's backends; `autodiff`: training of
//! scales, dictionaries and low-rank parts, and gradients in [`calibration`]; `fusion`. One source serves all of them;
//! [`pixel_core::backend`] has the operations. The crate `pixel-models` builds whole models of the Llama and BERT
//! families from these layers.
//!
//! # Limits
//! A record holds codes, scales and dictionary; shape, codec and rotation are in the path of the codes, so that a
//! record is loaded into a layer made with the same configuration alone. Codes are never trained. Products are tuned
//! for x86-64; the GPU kernels have not been timed.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod archive;
pub mod attention;
pub mod calibration;
mod codes;
mod dense;
mod embedding;
mod error;
mod linear;
pub mod prelude;
pub mod projection;
pub mod replace;
mod shared_input;
pub mod step;
mod synthesis;
mod trail;
mod weight;

pub use archive::{ArchiveStore, LoadReport};
pub use attention::{KeyValueCache, PIXELAttention, PIXELAttentionConfig};
pub use dense::PixelModule;
pub use embedding::{PIXELEmbedding, PIXELEmbeddingConfig};
pub use error::LayerError;
pub use linear::{PIXELLinear, PIXELLinearConfig};
/// The crate of codecs, packed weights and archives: its types appear in the signatures of this one.
pub use pixel_core;
#[doc(inline)]
pub use pixel_core::{
    CodecSpec, CodingSpec, Encoder, Matrix, MatrixRef, Moments, PIXELCompressor, PIXELConfig, PackedWeight,
    PatternDictionary, Shape, WeightSynthesizer,
    archive::{Archive, calibration::Calibration},
    compressor::Progress,
};
pub use projection::Projection;
pub use replace::{
    PatternParam, ReplaceConfig, ReplacementReport, compress_model, num_dense_params, replace_linear_layers,
    replace_linear_layers_with, replace_skeleton, replaced_parameters, restore_dense,
};
pub use shared_input::SharedInput;
pub use step::{Activation, FeedForward, ProjectionStep};
pub use synthesis::{SynthesisMode, WeightCache};
pub use weight::{LowRankParams, PatternWeight, ProtectedParams};
