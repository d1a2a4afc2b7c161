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
//! [`generate`](mod@generate) continues texts, [`evaluate`] measures perplexity and what compression changes, and
//! [`calibrate`](mod@calibrate) collects what the layers read, from which `pixel-core` compresses better.
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
pub mod config;
pub mod error;
pub mod evaluate;
mod fields;
pub mod generate;
mod json;
pub mod llama;
pub mod sampling;
pub mod tokenizer;
pub mod weights;

pub use bert::Bert;
pub use config::{BertConfig, LlamaConfig, LlamaFamily, ModelConfig, Pooling};
pub use error::ModelError;
pub use llama::{Llama, LlamaCache};
pub use weights::{LinearSize, TokenEmbedding};

use burn::module::ParamId;
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor};
use config::CONFIG_FILE;
use pixel_core::archive::{Model, model_folder};
use pixel_nn::SynthesisMode;
use pixel_nn::attention::CacheFormat;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokenizer::TextTokenizer;
use weights::WeightLoader;

/// The file name of a tokenizer.
const TOKENIZER_FILE: &str = "tokenizer.json";
/// Where sentence-transformers says how vectors are pooled.
const POOLING_FILE: &str = "1_Pooling/config.json";

/// How a model is loaded.
///
/// # Example
/// ```
/// use pixel_models::LoadOptions;
/// use pixel_nn::{SynthesisMode, WeightCache};
///
/// // Dense copies of packed weights, as many as 512 MiB hold.
/// let mode = SynthesisMode::Cached(WeightCache::new(512 << 20));
/// let options = LoadOptions::default().with_synthesis(mode);
/// assert!(matches!(options.synthesis, SynthesisMode::Cached(_)));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// When packed layers have dense weights. Default: never.
    pub synthesis: SynthesisMode,
    /// The type of dense weights and of activations, whatever the type in the file. Default: F32.
    pub dtype: FloatDType,
    /// How the caches of decoders hold keys and values. Default: as they are.
    pub cache_format: CacheFormat,
    /// Whether the contents of an archive are held against their hashes. Default: yes.
    pub check_hashes: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            synthesis: SynthesisMode::OnDemand,
            dtype: FloatDType::F32,
            cache_format: CacheFormat::F32,
            check_hashes: true,
        }
    }
}

impl LoadOptions {
    /// Chooses when packed layers have dense weights.
    pub fn with_synthesis(self, synthesis: SynthesisMode) -> Self {
        Self { synthesis, ..self }
    }

    /// Chooses how the caches of decoders hold keys and values.
    pub fn with_cache_format(self, cache_format: CacheFormat) -> Self {
        Self { cache_format, ..self }
    }

    /// Chooses whether the contents of an archive are held against their hashes; see
    /// [`Archive::without_hash_checks`](pixel_core::archive::Archive::without_hash_checks).
    pub fn with_hash_checks(self, check_hashes: bool) -> Self {
        Self { check_hashes, ..self }
    }

    /// Chooses the type of dense weights and of activations.
    pub fn with_dtype(self, dtype: FloatDType) -> Self {
        Self { dtype, ..self }
    }
}

/// A model that [`load`] has read.
#[derive(Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a program has few of them, each with hundreds of tensors")]
pub enum LoadedModel {
    /// A decoder, which predicts the next token.
    Causal(CausalModel),
    /// An encoder, which turns texts into vectors.
    Encoder(EncoderModel),
}

/// A decoder with what belongs to it.
#[derive(Debug)]
#[non_exhaustive]
pub struct CausalModel {
    /// The Burn module.
    pub network: Llama,
    /// What `config.json` says.
    pub config: LlamaConfig,
    /// The tensor in the file of each linear layer's and embedding's weight, by the id of its parameter: that of
    /// `weight` where it is dense, of the codes where it is packed.
    pub weight_names: BTreeMap<ParamId, String>,
    /// Tensors of the file that the model does not read; buffers that follow from the configuration are left out.
    pub unused: Vec<String>,
    /// The longest text that the model was made for, in tokens.
    pub max_positions: usize,
    /// The tokenizer, if there is a `tokenizer.json`.
    pub tokenizer: Option<TextTokenizer>,
    /// What was opened.
    pub path: PathBuf,
}

/// An encoder with what belongs to it.
#[derive(Debug)]
#[non_exhaustive]
pub struct EncoderModel {
    /// The Burn module.
    pub network: Bert,
    /// What `config.json` says.
    pub config: BertConfig,
    /// How tokens become one vector: what `1_Pooling/config.json` says, the mean without it.
    pub pooling: Pooling,
    /// The tensor in the file of each linear layer's and embedding's weight, by the id of its parameter: that of
    /// `weight` where it is dense, of the codes where it is packed.
    pub weight_names: BTreeMap<ParamId, String>,
    /// Tensors of the file that the model does not read; buffers that follow from the configuration, and BERT's pooler,
    /// are left out.
    pub unused: Vec<String>,
    /// The longest text that the model can read, in tokens.
    pub max_positions: usize,
    /// The tokenizer, if there is a `tokenizer.json`.
    pub tokenizer: Option<TextTokenizer>,
    /// What was opened.
    pub path: PathBuf,
}

/// Loads the model in the directory `path`, or in the `.safetensors` file `path`, with `config.json` and, if it is
/// there, `tokenizer.json` next to the weights.
///
/// # Errors
/// [`ModelError`]: each names the file, and the tensor or field with its value.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::Device;
/// use pixel_models::{LoadOptions, load};
/// let error = load("no/such/model", &LoadOptions::default(), &Device::flex()).unwrap_err();
/// assert_eq!(error.to_string(), "cannot read no/such/model/config.json");
/// # }
/// ```
pub fn load(path: impl AsRef<Path>, options: &LoadOptions, device: &Device) -> Result<LoadedModel, ModelError> {
    let path = &model_folder(path)?;
    let side_file = |name: &str| if path.is_file() { path.with_file_name(name) } else { path.join(name) };
    let config = ModelConfig::from_file(side_file(CONFIG_FILE))?;
    let weights = match Model::open(path)? {
        Model::Packed(archive) if !options.check_hashes => Model::Packed(archive.without_hash_checks()),
        Model::Packed(archive) => Model::Packed(archive),
        Model::Dense(checkpoint) => {
            checkpoint.check_layout()?;
            Model::Dense(checkpoint)
        }
    };
    let tokenizer = || if_there(side_file(TOKENIZER_FILE)).map(|file| TextTokenizer::from_file(&file)).transpose();
    let (mut loader, tokenizer) =
        rayon::join(|| WeightLoader::new(&weights, options.clone(), device.clone()), tokenizer);
    let path = path.to_owned();
    match config {
        ModelConfig::Llama(config) => {
            let network = Llama::from_loader(&config, &mut loader)?;
            let (weight_names, unused) = loader.finish();
            let (max_positions, tokenizer) = (config.max_position_embeddings, tokenizer?);
            let model = CausalModel { network, config, weight_names, unused, max_positions, tokenizer, path };
            Ok(LoadedModel::Causal(model))
        }
        ModelConfig::Bert(config) => {
            let pooling = if_there(side_file(POOLING_FILE)).map(|file| Pooling::from_file(&file)).transpose()?;
            let pooling = pooling.unwrap_or_default();
            let network = Bert::from_loader(&config, &mut loader)?;
            let (weight_names, unused) = loader.finish();
            let (max_positions, tokenizer) = (config.max_position_embeddings, tokenizer?);
            let model = EncoderModel { network, config, pooling, weight_names, unused, max_positions, tokenizer, path };
            Ok(LoadedModel::Encoder(model))
        }
    }
}

fn if_there(path: PathBuf) -> Option<PathBuf> {
    path.exists().then_some(path)
}

impl LoadedModel {
    /// The decoder.
    ///
    /// # Errors
    /// [`ModelError::Kind`] if it is an encoder.
    pub fn into_causal(self) -> Result<CausalModel, ModelError> {
        match self {
            Self::Causal(model) => Ok(model),
            Self::Encoder(EncoderModel { path, .. }) => {
                Err(ModelError::Kind { path, found: "an encoder", expected: "a decoder" })
            }
        }
    }

    /// The encoder.
    ///
    /// # Errors
    /// [`ModelError::Kind`] if it is a decoder.
    pub fn into_encoder(self) -> Result<EncoderModel, ModelError> {
        match self {
            Self::Encoder(model) => Ok(model),
            Self::Causal(CausalModel { path, .. }) => {
                Err(ModelError::Kind { path, found: "a decoder", expected: "an encoder" })
            }
        }
    }
}

impl EncoderModel {
    /// One vector of length 1 for each text, pooled as the model wants it.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`, `seq` up to `max_positions`
    /// - mask_pad: `[batch, seq]`, true = padding
    /// - output: `[batch, hidden_size]`, F32
    ///
    /// # Panics
    /// As [`Bert::embed`].
    pub fn embed(&self, tokens: Tensor<2, Int>, mask_pad: Option<Tensor<2, Bool>>) -> Tensor<2> {
        self.network.embed(tokens, mask_pad, self.pooling)
    }
}
