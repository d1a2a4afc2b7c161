//! Neural-network weights as indices into patterns plus scales, synthesised on demand.
//!
//! ```text
//!  weights ──▶ condition ──▶ codes ──▶ packed ──────▶ archive        compress
//!  MatrixRef   Conditioned   Codes     PackedWeight   safetensors
//!                                      │              │
//!                                      ▼              ▼
//!  Matrix ◀────────────────────────── synthesis ◀── Archive         run
//! ```
//!
//! A weight is rotated so that it looks Gaussian ([`math::rotation`]), each row is divided by its scale
//! ([`encode::condition`](fn@encode::condition)), a [`codec`] finds pattern indices for the result, and a
//! [`PackedWeight`] holds indices and scales. Five codecs share one trait: `trellis` (the best quality per bit),
//! `additive` (made for fast kernels), `lapped` (the same kernels, patterns that overlap), `matching` (sums of patterns
//! of a dictionary), `uniform` (round to nearest, the yardstick).
//!
//! # One weight
//! ```
//! use pixel_core::math::metrics::relative_error;
//! use pixel_core::{MatrixRef, Shape, compress_weight};
//!
//! let data: Vec<f32> = (0..96 * 64).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3)).collect();
//! let weight = MatrixRef::new(Shape::new(96, 64)?, &data)?;
//! let (packed, error) = compress_weight(weight, &"trellis:3:window=12".parse()?, Some(1))?;
//! assert!(packed.bits_per_weight() < 3.3); // scales counted: 16 bits a row of 64
//! let found = relative_error(&data, packed.synthesize().as_slice());
//! assert!((found.powi(2) - error.relative_mse()).abs() < 1e-6 && found < 0.16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A checkpoint
//! ```no_run
//! use pixel_core::archive::{Archive, Checkpoint};
//! use pixel_core::compressor::{RunOptions, compress_checkpoint};
//! use pixel_core::plan::{Plan, Recipe};
//!
//! let checkpoint = Checkpoint::open("models/all-MiniLM-L6-v2")?;
//! let plan = Plan::new(&checkpoint, &Recipe::default().compile()?)?;
//! println!("{} bytes will be written", plan.stored_bytes());
//! let report = compress_checkpoint(&checkpoint, &plan, "small", RunOptions::default(), &())?;
//! println!("{:.2}×, relative MSE {:.4}", report.compression_ratio(), report.relative_mse());
//! let archive = Archive::open("small")?;
//! # Ok::<(), pixel_core::archive::ArchiveError>(())
//! ```
//!
//! # In Burn
//! With the feature `burn` (on by default, with the CPU backend `flex`), the module `backend` runs compressed layers on
//! every backend of Burn; `pixel-nn` has the Burn modules. Without default features the crate is slices only.
//!
//! # Limits
//! Weights are coded one by one; with a [calibration](archive::calibration) the error of each column is fed back into
//! those not yet coded ([`encode::Feedback`]), and rates can be chosen under a mean ([`compressor::allocate_rates`]).
//! Weights of other float types are coded as F32. The same input, recipe and seed give the same bytes on every machine
//! and for every number of threads; only widths with an odd part above 128 rely on the platform's `sin` and `cos` in
//! f64.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod archive;
pub mod attention;
#[cfg(feature = "burn")]
pub mod backend;
pub mod codec;
pub mod compressor;
pub mod config;
pub mod dictionary;
mod disjoint;
pub mod encode;
mod error;
pub mod forward;
#[doc(hidden)]
pub mod lru;
pub mod math;
mod matrix;
mod packed;
pub mod patterns;
pub mod plan;
mod pool;
mod scratch;
pub mod synthesis;

pub use codec::CodecSpec;
#[doc(inline)]
pub use compressor::PIXELCompressor;
pub use config::PIXELConfig;
#[doc(inline)]
pub use dictionary::{PatternDictionary, WeightSynthesizer};
pub use encode::{
    CodingSpec, Encoder, FactorStorage, FeedbackOptions, LowRank, LowRankSpec, Moments, Outcome, OutputError,
    PreparedInputs, compress_weight,
};
pub use error::{ConfigError, FormatError, Number, NumberRange, ShapeError, WeightError};
pub use math::rotation::Rotation;
pub use matrix::{Matrix, MatrixRef, Shape, TileGrid, TileShape};
pub use packed::{PackedHeader, PackedWeight};
