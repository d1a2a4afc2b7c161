//! From a directory to a model.

use crate::config::{CONFIG_FILE, ModelConfig, Pooling};
use crate::error::ModelError;
use crate::tokenizer::TextTokenizer;
use crate::weights::WeightLoader;
use crate::{Bert, CausalModel, EncoderModel, Llama, LoadedModel};
use burn::tensor::{Device, FloatDType};
use pixel_core::archive::{Model, model_folder};
use pixel_nn::SynthesisMode;
use pixel_nn::attention::CacheFormat;
use std::path::{Path, PathBuf};

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
