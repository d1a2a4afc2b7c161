//! Whole models from Hugging Face directories and from the archives that PIXEL makes of them.
//!
//! ```text
//!  config.json ────▶ LlamaConfig, BertConfig ─┐
//!  *.safetensors ──▶ WeightLoader ────────────┼──▶ CausalModel { network: Llama, … }   logits, sampling, evaluation
//!   (dense or       packed ▶ PIXELLinear      │
//!    archive)       dense  ▶ Linear           └──▶ EncoderModel { network: Bert, … }   states, sentence vectors
//!  tokenizer.json ─▶ TextTokenizer
//! ```
//!
//! [`load`] opens a dense checkpoint and an archive alike: what is stored as codes runs from the codes, everything else
//! as Burn's own layers. [`CausalModel::weight_names`] leads from a parameter back to its tensor in the file.
//! [`generate`](mod@generate) continues texts, [`chat`] converses, [`evaluate`] measures perplexity and what
//! compression changes, and [`calibrate`](mod@calibrate) collects what the layers read, from which `pixel-core`
//! compresses better.
//!
//! # Example
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Int, Tensor};
//! use pixel_models::LoadOptions;
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
//!
//! let device = Device::flex();
//! let model = pixel_models::load(path, &LoadOptions::default(), &device)?.into_causal()?;
//! let network = &model.network;
//! let mut cache = network.cache();
//! let mut tokens = Tensor::<2, Int>::from_data([[1, 17, 4]], &device);
//! for _ in 0..5 {
//!     let logits = network.forward_cached(tokens, &mut cache);
//!     assert_eq!(logits.dims(), [1, model.config.vocab_size]);
//!     tokens = logits.argmax(1);
//! }
//! assert_eq!(cache.len(), 7);
//! # }
//! # Ok::<(), pixel_models::ModelError>(())
//! ```
//!
//! # Features
//! `flex` (default), `ndarray`, `wgpu`, `vulkan`, `metal`, `cuda`, `cpu`, `autodiff` (calibration weighted by
//! gradients) and `fusion` are those of `pixel-nn`.
//!
//! # Limits
//! Decoders: `model_type` llama, mistral, qwen2, qwen3, with the SiLU activation and rotary positions unscaled, linear
//! or llama3. Encoders: bert, with absolute positions. Mixtures of experts, encoder–decoders, MPNet, RoBERTa, YaRN and
//! weights quantized by others are refused by name. Tasks' heads are not run (classification, BERT's vocabulary); their
//! tensors are listed in `unused`. Dense weights are read as `f32` on the host, one tensor at a time.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod bert;
pub mod calibrate;
pub mod chat;
pub mod config;
pub mod error;
pub mod evaluate;
mod fields;
pub mod generate;
mod json;
pub mod llama;
mod load;
mod model;
pub mod sampling;
pub mod tokenizer;
pub mod weights;

pub use bert::Bert;
pub use config::{BertConfig, LlamaConfig, LlamaFamily, ModelConfig, Pooling};
pub use error::ModelError;
pub use llama::{Llama, LlamaCache};
pub use load::{LoadOptions, load};
pub use model::{CausalModel, EncoderModel, LoadedModel};
pub use weights::{LinearSize, TokenEmbedding, UnreadReason, UnreadTensor};
