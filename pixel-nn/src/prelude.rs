//! What most programs of a Burn user need, in one `use`.
//!
//! # Example
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::nn::LinearConfig;
//! use burn::tensor::{Device, Tensor};
//! use pixel_nn::prelude::*;
//!
//! let device = Device::flex();
//! let dense = LinearConfig::new(256, 128).init(&device);
//! let (model, report) = replace_linear_layers(dense, &ReplaceConfig::new(CodecSpec::new("trellis", 3.0)))?;
//! assert_eq!(report.layers.len(), 1);
//! let y = model.forward(Tensor::<2>::ones([8, 256], &device));
//!
//! let layer = PIXELLinearConfig::new(128, 64).with_codec("additive:2".parse()?).init(&device);
//! assert_eq!(layer.with_synthesis(SynthesisMode::OnDemand).forward(y).dims(), [8, 64]);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use crate::attention::{KeyValueCache, PIXELAttention, PIXELAttentionConfig, RotaryConfig};
pub use crate::calibration::{
    CalibrationOptions, InputMoments, InputSums, calibrate, calibrate_in_memory, weight_paths,
};
pub use crate::replace::{
    ReplaceConfig, ReplacementReport, compress_model, replace_linear_layers, replace_linear_layers_with,
    replace_skeleton, restore_dense,
};
pub use crate::{
    ArchiveStore, LayerError, PIXELEmbedding, PIXELEmbeddingConfig, PIXELLinear, PIXELLinearConfig, PixelModule,
    Projection, SynthesisMode, WeightCache,
};
pub use pixel_core::archive::Archive;
pub use pixel_core::archive::calibration::Calibration;
pub use pixel_core::compressor::Progress;
pub use pixel_core::{
    CodecSpec, CodingSpec, Encoder, Matrix, MatrixRef, PIXELCompressor, PIXELConfig, PackedWeight, PatternDictionary,
    Shape, WeightSynthesizer,
};
