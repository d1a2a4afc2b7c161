//! What `config.json` says about a model, checked.
//!
//! Field names are those of the file. Fields that change nothing here (dropout, `use_cache`, …) are not read; a value
//! that would change the result and is not built is refused by name.

mod bert;
mod llama;
mod pooling;

pub use bert::BertConfig;
pub use llama::{LlamaConfig, LlamaFamily};
pub use pixel_nn::Activation;
pub use pooling::Pooling;

use crate::error::ModelError;
use crate::fields::Fields;
use std::path::Path;

/// The file name of a configuration.
pub const CONFIG_FILE: &str = "config.json";

/// Layers that a configuration may ask for; the deepest published models have fewer than 200.
const MAX_LAYERS: usize = 1 << 12;

/// A configuration of either kind.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelConfig {
    /// A decoder of the Llama family.
    Llama(LlamaConfig),
    /// An encoder of the BERT family.
    Bert(BertConfig),
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Json`]; [`ModelError::MissingField`] and [`ModelError::Config`] for a field
    /// that is missing or wrong; [`ModelError::Unsupported`] for a model that is not built here.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let fields = Fields::open(path)?;
        if fields.object("quantization_config")?.is_some() {
            return Err(fields.unsupported(
                "quantization_config",
                "weights in floats or in a PIXEL archive are (`pixel dequantize` makes floats of many)",
            ));
        }
        let family = match fields.required::<String>("model_type")?.as_str() {
            "llama" => LlamaFamily::Llama,
            "mistral" => LlamaFamily::Mistral,
            "qwen2" => LlamaFamily::Qwen2,
            "qwen3" => LlamaFamily::Qwen3,
            "bert" => return Ok(Self::Bert(BertConfig::read(&fields)?)),
            _ => return Err(fields.unsupported("model_type", "llama, mistral, qwen2, qwen3 and bert are")),
        };
        Ok(Self::Llama(LlamaConfig::read(&fields, family)?))
    }
}

fn layers(fields: &Fields) -> Result<usize, ModelError> {
    let layers = fields.size("num_hidden_layers")?;
    if layers > MAX_LAYERS {
        return Err(fields.wrong("num_hidden_layers", &format!("it must be in 1..={MAX_LAYERS}")));
    }
    Ok(layers)
}

#[cfg(test)]
mod fixtures {
    use super::*;
    use serde_json::Value;

    /// The configuration that `base` gives with `changes` made to it; null takes a field away.
    pub(super) fn read(base: Value, changes: Value) -> Result<ModelConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONFIG_FILE);
        let mut object = base.as_object().unwrap().clone();
        for (field, value) in changes.as_object().unwrap() {
            object.insert(field.clone(), value.clone());
        }
        std::fs::write(&path, Value::Object(object).to_string()).unwrap();
        let config = ModelConfig::from_file(&path);
        config.map_err(|error| error.to_string().replace(&format!("{}: ", path.display()), ""))
    }
}
