//! Neural-network weights as indices into patterns plus scales, synthesised on demand.
//!
//! ```text
//!  weights ──▶ condition ──▶ codes ──▶ packed ──▶ archive        (compress)
//!  MatrixRef   Conditioned   Codes     PackedWeight  safetensors
//!                                      ▼             ▼
//!                                   synthesis ◀── Archive        (run)
//! ```
#![warn(missing_docs)]

pub mod archive;
pub mod codec;
pub mod compressor;
pub mod condition;
pub mod config;
pub mod dictionary;
pub mod encode;
pub mod error;
pub mod matrix;
pub mod metrics;
pub mod packed;
pub mod recipe;
pub mod rotation;
pub mod synthesis;

pub use codec::CodecSpec;
pub use config::PIXELConfig;
pub use encode::{compress_owned, compress_weight};
pub use error::{ConfigError, FormatError, ShapeError, WeightError};
pub use matrix::{Matrix, MatrixRef, Shape, TileGrid, TileShape};
pub use packed::{PackedHeader, PackedWeight};
pub use rotation::Rotation;
