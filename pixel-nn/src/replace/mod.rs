//! Compression of a model as it stands: its types, its `forward` and its call sites stay what they are.
//!
//! ```text
//!            model: M                                model: M
//!  fc1: Linear                             fc1: Linear
//!  ├─ weight  [d_input, d_output]   ──▶    ├─ weight  [1, 1]          same id, a placeholder
//!  │                                       │  └─ pixel: PatternParam  codes, scales, dictionary
//!  └─ bias    [d_output]                   └─ bias    [d_output]      untouched
//!                                             weight.val() = synthesised, [d_input, d_output]
//! ```
//!
//! [`replace_linear_layers`] walks over any Burn module and attaches a [`PatternParam`] to the weights that a
//! [`ReplaceConfig`] selects, through Burn's [`Reparameterizer`](burn::module::Reparameterizer). The dense values are
//! dropped; [`Param::val`](burn::module::Param::val), by which layers read their weights, synthesises them.
//!
//! # Example
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Tensor};
//! use pixel_core::CodecSpec;
//! use pixel_nn::{ReplaceConfig, replace_linear_layers, replace_skeleton};
//!
//! #[derive(Module, Debug)]
//! struct Net {
//!     blocks: Vec<Linear>,
//!     head: Linear,
//! }
//!
//! fn net(device: &Device) -> Net {
//!     let linear = || LinearConfig::new(64, 64).init(device);
//!     Net { blocks: vec![linear(), linear()], head: linear() }
//! }
//!
//! let device = Device::flex();
//! let config = ReplaceConfig::new(CodecSpec::new("uniform", 4.0)).with_exclude(vec!["^head".into()]);
//! let (small, report) = replace_linear_layers(net(&device), &config)?;
//! assert_eq!(report.layers[1].name, "blocks.1.weight");
//! assert!(report.bits_per_weight() < 4.4 && report.relative_error() < 0.1);
//! println!("{report}");
//! assert_eq!(small.blocks[0].forward(Tensor::<2>::ones([1, 64], &device)).dims(), [1, 64]);
//!
//! // A record is loaded into a model that the same configuration has made.
//! let bytes = small.into_record().into_bytes()?;
//! let record = burn::store::ModuleRecord::from_bytes(bytes)?;
//! let loaded = replace_skeleton(net(&device), &config)?.load_record(record);
//! # let _ = loaded;
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which weights
//! The `weight` of every Burn `Linear`, wherever it is: in a field, `Vec`, array, tuple, `Option` or enum, also inside
//! Burn's own modules (attention, LSTM). On request, those of `Embedding`, of `Conv1d`, `Conv2d`, `Conv3d` and of their
//! transposed variants. Layers are known by the name of their type, which is all that Burn passes on; a type of your
//! own called `Linear` counts as one, and stays correct. All other matrices, those that are quantized or carry
//! something already, and small ones are kept; the report lists each with its [`SkipReason`].
//!
//! | parameter | shape | matrix `[d_output, d_input]` |
//! |---|---|---|
//! | `Linear` | `[d_input, d_output]` | its transpose |
//! | `Embedding` | `[n_embedding, d_model]` | as it is |
//! | convolution | `[out, in/groups, k…]` | `[out, in/groups · k…]` |
//! | transposed convolution | `[in, out/groups, k…]` | `[in, out/groups · k…]`, a row for each *input* channel |
//!
//! Parameters that share one id and equal values, as clones of a layer do, share their patterns, and the ids of those.
//! Parameters of one id whose values have drifted apart are replaced each by itself.
//!
//! # Training
//! Scales and dictionary have gradients, if the weight had; codes have not. The placeholder has none, but remembers
//! whether its parameter is trained, for [`restore_dense`].
//!
//! # Memory
//! The walk holds one dense weight in addition to the model. A forward pass forms the dense weight of one layer at a
//! time and drops it: peak memory is one dense layer above what the model holds, as measured on Flex. In training, the
//! backward pass keeps the dense weights of all layers. [`SynthesisMode::Cached`](crate::SynthesisMode) trades memory
//! for time.
//!
//! # Limits
//! - No fused kernel: [`PIXELLinear`](crate::PIXELLinear) multiplies without forming the weight, and
//!   [`PIXELEmbedding`](crate::PIXELEmbedding) synthesises only the rows looked up. Prefer them where you can change
//!   the model's types; prefer this where you cannot, or where batches are so large that synthesis does not count.
//! - What looks at the stored value instead of `val()` sees the placeholder: `Display` prints its sizes,
//!   [`Module::num_params`] counts it in addition to scales and dictionary.
//! - A record holds tensors alone, those of the codes under a name that tells shape, codec and rotation: load it into
//!   the same architecture after [`replace_skeleton`] with the same configuration. Scales and
//!   dictionary are F32 in a record, F16 or absent in an archive: the report's `device_bytes` is nearer to what a
//!   record takes than its `stored_bytes`.
//! - LoRA uses the same slot of a parameter. A weight that has an adapter is kept; and `apply_lora` on a replaced model
//!   does not reach the weights: it freezes the dictionaries and lays its adapters on the scales, which are matrices
//!   too. Train scales and dictionary themselves, restore first, or use
//!   [`PIXELLinear::with_low_rank`](crate::PIXELLinear::with_low_rank).
//! - Do not cast all parameters of a replaced model to another type: scales and dictionary must stay F32. Cast first;
//!   the synthesised value takes the type that its weight had.

mod config;
mod param;
mod replacer;
mod report;
mod survey;

pub use config::{ReplaceConfig, ReplaceRule};
pub use param::PatternParam;
pub use report::{KeptParameter, LayerReport, ReplacedParameter, ReplacementReport, SkipReason};

use crate::error::LayerError;
use burn::module::Module;
use replacer::{Source, replace};

/// Compresses the linear layers of `model`, and what else `config` asks for; the model's types stay as they are.
///
/// # Errors
/// [`LayerError::Config`], [`LayerError::Pattern`] and [`LayerError::Unmatched`] for a configuration that cannot be
/// carried out, before anything is touched; [`LayerError::Parameter`] with the path of a weight that cannot be
/// compressed: not finite, empty, on a device without an implementation. The model is gone then; clone it first if it
/// is still needed.
pub fn replace_linear_layers<M: Module>(
    model: M,
    config: &ReplaceConfig,
) -> Result<(M, ReplacementReport), LayerError> {
    replace(model, config, Source::Values)
}

/// What [`replace_linear_layers`] makes of `model`, but with random patterns: a model into which a record is loaded.
///
/// Nothing is encoded. Parameters that are still lazy, as in a model fresh from its configuration, are initialised one
/// by one and dropped, so that no more than one weight is dense at a time.
///
/// # Errors
/// As [`replace_linear_layers`], but for what is wrong with values.
pub fn replace_skeleton<M: Module>(model: M, config: &ReplaceConfig) -> Result<M, LayerError> {
    Ok(replace(model, config, Source::Random)?.0)
}

/// Back to dense parameters, with the ids that they had: [`Module::materialize`].
///
/// That folds *everything* attached to parameters into them, LoRA adapters too.
pub fn restore_dense<M: Module>(model: M) -> M {
    model.materialize()
}

/// The parameters of `model` that have been replaced, in the order of its fields.
pub fn replaced_parameters<M: Module>(model: &M) -> Vec<ReplacedParameter> {
    survey::replaced(model)
}
