//! Compression of a model as it stands: its types, its `forward` and its call sites stay what they are.
//!
//! ```text
//!            model: M                                model: M
//!  fc1: Linear                             fc1: Linear
//!  ├─ weight  [d_input, d_output]   ──▶    ├─ weight  [d_input, 1]    same id, a placeholder
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
//! All of Burn's modules that hold such weights run and print as before, also those that read a weight's shape; the
//! table in `docs/burn.md` comes from the test that runs them all.
//!
//! Parameters that share one id and equal values, as clones of a layer do, share their patterns, and the ids of those.
//! Parameters of one id whose values have drifted apart are replaced each by itself.
//!
//! # Training
//! Scales have gradients, if the weight had; codes have not, and dictionaries where
//! [`ReplaceConfig::train_dictionaries`] asks for it. The placeholder has none, but remembers whether its parameter is
//! trained, for [`restore_dense`].
//!
//! # Memory
//! Weights are coded on all threads of rayon's pool while the walk takes them out of the model, and each thread holds
//! one dense weight. A forward pass forms the dense weight of one layer at a
//! time and drops it: peak memory is one dense layer above what the model holds, as measured on Flex. In training, the
//! backward pass keeps the dense weights of all layers. [`SynthesisMode::Cached`](crate::SynthesisMode) trades memory
//! for time.
//!
//! # Limits
//! - No fused kernel: [`PIXELLinear`](crate::PIXELLinear) multiplies without forming the weight, and
//!   [`PIXELEmbedding`](crate::PIXELEmbedding) synthesises only the rows looked up. Prefer them where you can change
//!   the model's types; prefer this where you cannot, or where batches are so large that synthesis does not count.
//! - What looks at the stored value instead of `val()` sees the placeholder, `[d_input, 1]`: `Display` of a `Linear`
//!   prints `d_output: 1`, and [`Module::num_params`] counts `d_input` numbers in addition to scales and dictionary.
//!   [`num_dense_params`] counts what the model computes with, and [`replaced_parameters`] has the true shapes. Of a
//!   layer with Burn's column layout it is `[1, 1]`. A module of your own that reads the second axis of a weight
//!   without
//!   `val()` must be excluded.
//! - A record holds tensors alone, those of the codes under a name that tells shape, codec and rotation: load it into
//!   the same architecture after [`replace_skeleton`] with the same configuration. Scales and
//!   dictionary are F32 in a record, F16 or absent in an archive: the report's `device_bytes` is nearer to what a
//!   record takes than its `stored_bytes`.
//! - LoRA uses the same slot of a parameter. A weight that has an adapter is kept; and `apply_lora` on a replaced model
//!   does not reach the weights: it freezes the dictionaries and lays its adapters on the scales, which are matrices
//!   too. Train scales and dictionary themselves, restore first, or use
//!   [`PIXELLinear::with_low_rank`](crate::PIXELLinear::with_low_rank).
//! - The synthesised value takes the type that its weight has. A model that is cast as a whole casts scales and
//!   dictionary too, which are rounded then, though products compute in F32: cast first.

mod config;
mod param;
mod placeholder;
mod replacer;
mod report;
mod survey;

pub(crate) use replacer::{attach, or_gone};
pub(crate) use survey::ATTACHED;

pub use config::{ReplaceConfig, ReplaceRule};
pub use param::PatternParam;
pub use report::{KeptParameter, LayerReport, ReplacedParameter, ReplacementReport, SkipReason};

use crate::calibration::{CalibrationError, calibrate_in_memory, weight_paths};
use crate::error::LayerError;
use burn::module::Module;
use pixel_core::archive::calibration::Weighting;
use pixel_core::compressor::Progress;
use std::sync::Arc;

/// Compresses the linear layers of `model`, and what else `config` asks for; the model's types stay as they are.
///
/// # Errors
/// [`LayerError::Config`], [`LayerError::Pattern`] and [`LayerError::Unmatched`] for a configuration that cannot be
/// carried out, [`LayerError::NothingToReplace`] and [`LayerError::NotCalibrated`], before anything is touched;
/// [`LayerError::Parameter`] with the path of a weight that cannot be compressed: not finite, empty, on a device
/// without an implementation. The model is gone then; clone it first if it is still needed.
pub fn replace_linear_layers<M: Module>(
    model: M,
    config: &ReplaceConfig,
) -> Result<(M, ReplacementReport), LayerError> {
    replacer::replace(model, config, &())
}

/// [`replace_linear_layers`], reporting each weight that is done. Weights are coded on all threads of rayon's pool, so
/// that they are not done in order.
///
/// # Errors
/// As [`replace_linear_layers`], and [`LayerError::Cancelled`] if `progress` asks to stop.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::{nn::LinearConfig, tensor::Device};
/// use pixel_core::compressor::Progress;
/// use pixel_nn::{ReplaceConfig, replace_linear_layers_with};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// #[derive(Default)]
/// struct Count(AtomicU64);
/// impl Progress for Count {
///     fn tensor_done(&self, name: &str, weights: u64) {
///         println!("{name}: {} weights done", self.0.fetch_add(weights, Ordering::Relaxed) + weights);
///     }
/// }
/// let (count, model) = (Count::default(), LinearConfig::new(64, 64).init(&Device::flex()));
/// replace_linear_layers_with(model, &ReplaceConfig::new("uniform:4".parse()?), &count)?;
/// assert_eq!(count.0.into_inner(), 64 * 64);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn replace_linear_layers_with<M: Module>(
    model: M,
    config: &ReplaceConfig,
    progress: &dyn Progress,
) -> Result<(M, ReplacementReport), LayerError> {
    replacer::replace(model, config, progress)
}

/// Calibrates `model` on `batches` and compresses it: [`calibrate_in_memory`] and [`replace_linear_layers`] in one.
///
/// `forward` runs the model on one batch; every vector that a layer reads is a token, so do not pad. Layers that can be
/// listened to are [`Projection`](crate::Projection)s and what is built of them: the [calibration](crate::calibration)
/// module has what to do about others. Errors of the weights whose inputs were seen are fed back so that the outputs of
/// their layers change least.
///
/// # Errors
/// [`CalibrationError`]; one of the replacement is [`CalibrationError::Layer`].
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::module::Module;
/// use burn::nn::LinearConfig;
/// use burn::tensor::{Device, Distribution, Tensor, activation::relu};
/// use pixel_nn::{Projection, ReplaceConfig, compress_model};
///
/// #[derive(Module, Debug)]
/// struct Mlp {
///     up: Projection,
///     down: Projection,
/// }
///
/// impl Mlp {
///     fn forward(&self, x: Tensor<2>) -> Tensor<2> {
///         self.down.forward(relu(self.up.forward(x)))
///     }
/// }
///
/// let device = Device::flex();
/// let linear = |m, n| Projection::from(LinearConfig::new(m, n).init(&device));
/// let model = Mlp { up: linear(32, 64), down: linear(64, 32) };
/// let batches: Vec<_> = (0..4).map(|_| Tensor::<2>::random([64, 32], Distribution::Default, &device)).collect();
/// let config = ReplaceConfig::new("lapped:2".parse()?);
/// let (small, report) = compress_model(model, &batches, |model, batch| drop(model.forward(batch.clone())), &config)?;
/// assert!(report.layers.iter().all(|layer| layer.output_error.unwrap() < layer.relative_error));
/// assert_eq!(small.forward(batches[0].clone()).dims(), [64, 32]);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compress_model<M: Module, B>(
    model: M,
    batches: &[B],
    mut forward: impl FnMut(&M, &B),
    config: &ReplaceConfig,
) -> Result<(M, ReplacementReport), CalibrationError> {
    let run = |batch: &B| {
        forward(&model, batch);
        None
    };
    let sums = calibrate_in_memory(&weight_paths(&model), batches, run, Weighting::Uniform, &mut |_| {})?;
    let config = ReplaceConfig { calibration: Some(Arc::new(sums)), ..config.clone() };
    Ok(replace_linear_layers(model, &config)?)
}

/// What [`replace_linear_layers`] makes of `model`, but with random patterns: a model into which a record is loaded.
///
/// Nothing is encoded. Parameters that are still lazy, as in a model fresh from its configuration, are initialised one
/// by one and dropped, so that no more than one weight is dense at a time.
///
/// # Errors
/// As [`replace_linear_layers`], but for what is wrong with values.
pub fn replace_skeleton<M: Module>(model: M, config: &ReplaceConfig) -> Result<M, LayerError> {
    replacer::skeleton(model, config)
}

/// Back to dense parameters, with the ids that they had: [`Module::materialize`].
///
/// That folds *everything* attached to parameters into them, LoRA adapters too.
pub fn restore_dense<M: Module>(model: M) -> M {
    model.materialize()
}

/// The number of parameters that `model` computes with: a weight that is patterns counts as the dense one. That of
/// [`Module::num_params`] is what an optimizer sees, and counts placeholders, scales and dictionaries.
pub fn num_dense_params<M: Module>(model: &M) -> usize {
    survey::num_dense_params(model)
}

/// The parameters of `model` that have been replaced, in the order of its fields.
pub fn replaced_parameters<M: Module>(model: &M) -> Vec<ReplacedParameter> {
    survey::replaced(model)
}
