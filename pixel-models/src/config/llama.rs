//! The configuration of a decoder of the Llama family.

use super::layers;
use crate::error::ModelError;
use crate::fields::Fields;
use pixel_nn::attention::{RotaryConfig, RotaryScaling};

/// The decoders that [`Llama`](crate::llama::Llama) runs, by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LlamaFamily {
    /// `llama`: Llama 1 to 3, SmolLM, TinyLlama.
    Llama,
    /// `mistral`: a window over the keys.
    Mistral,
    /// `qwen2`: Qwen 1.5 to 2.5, biases at queries, keys and values.
    Qwen2,
    /// `qwen3`: RMS norms over each query and key head.
    Qwen3,
}

/// A decoder of the Llama family.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// `model_type`.
    pub family: LlamaFamily,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Length of a token's vector.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads, a divisor of `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Length of one head; even.
    pub head_dim: usize,
    /// The longest text of the training, in tokens. Rotary positions go on beyond it, the quality does not.
    pub max_position_embeddings: usize,
    /// The ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Whether the head is the transposed embedding.
    pub tie_word_embeddings: bool,
    /// Whether queries, keys and values have biases.
    pub input_bias: bool,
    /// Whether the output of an attention has a bias.
    pub output_bias: bool,
    /// Whether the three projections of the MLP have biases.
    pub mlp_bias: bool,
    /// Rotary positions: `rope_theta` with `rope_scaling`, or `rope_parameters`.
    pub rotary: RotaryConfig,
    /// For each layer the number of keys that a query sees at most; `None` is no limit.
    pub windows: Vec<Option<usize>>,
}

impl LlamaConfig {
    pub(super) fn read(fields: &Fields, family: LlamaFamily) -> Result<Self, ModelError> {
        if fields.optional::<String>("hidden_act")?.is_some_and(|name| name != "silu") {
            return Err(fields.unsupported("hidden_act", "silu is"));
        }
        if fields.optional::<f64>("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(fields.unsupported("partial_rotary_factor", "1 is"));
        }
        let num_hidden_layers = layers(fields)?;
        let num_attention_heads = fields.size("num_attention_heads")?;
        let hidden_size = fields.size("hidden_size")?;
        let flag = |field| Ok::<_, ModelError>(fields.optional(field)?.unwrap_or(false));
        let (input_bias, output_bias) = match family {
            LlamaFamily::Llama | LlamaFamily::Qwen3 => (flag("attention_bias")?, flag("attention_bias")?),
            LlamaFamily::Qwen2 => (true, false),
            LlamaFamily::Mistral => (false, false),
        };
        Ok(Self {
            family,
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: key_heads(fields, family, num_attention_heads)?,
            head_dim: head_size(fields, family, hidden_size, num_attention_heads)?,
            max_position_embeddings: fields.size("max_position_embeddings")?,
            rms_norm_eps: fields.positive("rms_norm_eps")?,
            tie_word_embeddings: flag("tie_word_embeddings")?,
            input_bias,
            output_bias,
            mlp_bias: family == LlamaFamily::Llama && flag("mlp_bias")?,
            rotary: rotary(fields)?,
            windows: windows(fields, family, num_hidden_layers)?,
        })
    }

    /// Length of all query heads together.
    pub const fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Length of all key heads together, and of all value heads.
    pub const fn key_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

fn key_heads(fields: &Fields, family: LlamaFamily, n_heads: usize) -> Result<usize, ModelError> {
    let field = "num_key_value_heads";
    // Llama 1 came before shared key heads; the others' own default is some number, not that of the query heads.
    let key_heads = match family {
        LlamaFamily::Llama => fields.optional_size(field)?.unwrap_or(n_heads),
        _ => fields.size(field)?,
    };
    if !n_heads.is_multiple_of(key_heads) {
        return Err(fields.wrong(field, &format!("num_attention_heads = {n_heads} is no multiple of it")));
    }
    Ok(key_heads)
}

fn head_size(fields: &Fields, family: LlamaFamily, hidden_size: usize, n_heads: usize) -> Result<usize, ModelError> {
    let size = match (fields.optional_size("head_dim")?, family) {
        (Some(size), _) => size,
        // The heads of Qwen3 do not follow from its width.
        (None, LlamaFamily::Qwen3) => fields.size("head_dim")?,
        (None, _) if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
        (None, _) => {
            let reason =
                format!("hidden_size = {hidden_size} does not split into so many heads, and head_dim is absent");
            return Err(fields.wrong("num_attention_heads", &reason));
        }
    };
    if !size.is_multiple_of(2) {
        return Err(fields.wrong("head_dim", &format!("rotary positions need an even head size, got {size}")));
    }
    Ok(size)
}

/// Rotary positions, as transformers 5 (`rope_parameters`) and those before it (`rope_theta`, `rope_scaling`) write
/// them.
fn rotary(fields: &Fields) -> Result<RotaryConfig, ModelError> {
    // What every class of this family has for a default in Hugging Face's code.
    let theta = fields.optional_positive("rope_theta")?.unwrap_or(10000.0);
    let parameters = match fields.object("rope_parameters")? {
        None => fields.object("rope_scaling")?,
        parameters => parameters,
    };
    let Some(parameters) = parameters else { return Ok(RotaryConfig::new().with_theta(theta)) };
    let theta = parameters.optional_positive("rope_theta")?.unwrap_or(theta);
    // The older key, if it is the one that is there.
    let key = if parameters.optional::<String>("rope_type")?.is_some() { "rope_type" } else { "type" };
    let scaling = match parameters.optional::<String>(key)?.as_deref() {
        None | Some("default") => RotaryScaling::None,
        Some("linear") => RotaryScaling::Linear { factor: parameters.positive("factor")? },
        Some("llama3") => llama3_scaling(&parameters)?,
        Some(_) => return Err(parameters.unsupported(key, "default, linear and llama3 are")),
    };
    if parameters.optional::<f64>("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(parameters.unsupported("partial_rotary_factor", "1 is"));
    }
    Ok(RotaryConfig::new().with_theta(theta).with_scaling(scaling))
}

fn llama3_scaling(parameters: &Fields) -> Result<RotaryScaling, ModelError> {
    let (low, high) = (parameters.positive("low_freq_factor")?, parameters.positive("high_freq_factor")?);
    if high <= low {
        return Err(parameters.wrong("high_freq_factor", &format!("it must be above low_freq_factor = {low}")));
    }
    Ok(RotaryScaling::Llama3 {
        factor: parameters.positive("factor")?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_positions: parameters.size("original_max_position_embeddings")?,
    })
}

/// The window of each layer.
fn windows(fields: &Fields, family: LlamaFamily, n_layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let window = match family {
        LlamaFamily::Llama => None,
        LlamaFamily::Mistral => fields.optional_size("sliding_window")?,
        LlamaFamily::Qwen2 | LlamaFamily::Qwen3 => match fields.optional("use_sliding_window")? {
            Some(true) => fields.optional_size("sliding_window")?,
            _ => None,
        },
    };
    if window.is_none() || family == LlamaFamily::Mistral {
        return Ok(vec![window; n_layers]);
    }
    let Some(types) = fields.optional::<Vec<String>>("layer_types")? else {
        // The first layers see everything.
        let first: usize = fields.required("max_window_layers")?;
        return Ok((0..n_layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != n_layers {
        return Err(fields.wrong("layer_types", &format!("num_hidden_layers = {n_layers} are needed")));
    }
    let windows = types.iter().map(|name| match name.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(window),
        _ => Err(fields.unsupported("layer_types", "full_attention and sliding_attention are")),
    });
    windows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::config::fixtures::read;
    use serde_json::{Value, json};

    fn llama(changes: Value) -> Result<LlamaConfig, String> {
        let base = json!({
            "model_type": "llama", "vocab_size": 10, "hidden_size": 24, "intermediate_size": 20,
            "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 99, "unknown": [1, 2],
        });
        match read(base, changes)? {
            ModelConfig::Llama(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_that_are_absent_follow_from_others() {
        let config = llama(json!({ "num_key_value_heads": null })).unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim), (6, 4));
        assert_eq!((config.query_size(), config.key_size()), (24, 24));
        assert_eq!(config.rotary, RotaryConfig::new());
        assert!(!config.tie_word_embeddings && !config.input_bias && !config.output_bias && !config.mlp_bias);
        let config = llama(json!({ "head_dim": 10 })).unwrap();
        assert_eq!((config.query_size(), config.key_size()), (60, 20));
    }

    #[test]
    fn each_fault_is_told_with_field_and_value() {
        let cases = [
            (json!({ "vocab_size": null }), "field \"vocab_size\" is missing"),
            (json!({ "vocab_size": "x" }), "field \"vocab_size\" is \"x\": invalid type"),
            (json!({ "vocab_size": 0 }), "field \"vocab_size\" is 0: it must be in 1..="),
            (json!({ "hidden_size": -4 }), "field \"hidden_size\" is -4: invalid value"),
            (
                json!({ "num_hidden_layers": 1_000_000 }),
                "field \"num_hidden_layers\" is 1000000: it must be in 1..=4096",
            ),
            (json!({ "num_attention_heads": 5 }), "field \"num_key_value_heads\" is 2: num_attention_heads = 5"),
            (json!({ "hidden_size": 25 }), "field \"num_attention_heads\" is 6: hidden_size = 25"),
            (json!({ "head_dim": 5 }), "field \"head_dim\" is 5: rotary positions need an even"),
            (json!({ "rms_norm_eps": 0.0 }), "field \"rms_norm_eps\" is 0.0: it must be positive"),
            (json!({ "hidden_act": "gelu" }), "not supported: field \"hidden_act\" = \"gelu\"; silu is"),
            (json!({ "model_type": "roberta" }), "not supported: field \"model_type\" = \"roberta\"; llama, "),
            (json!({ "model_type": "mpnet" }), "not supported: field \"model_type\" = \"mpnet\"; llama, "),
            (json!({ "model_type": "qwen3" }), "field \"head_dim\" is missing"),
            (
                json!({ "model_type": "mistral", "num_key_value_heads": null }),
                "field \"num_key_value_heads\" is missing",
            ),
            (
                json!({ "quantization_config": { "bits": 4 } }),
                "not supported: field \"quantization_config\" = {\"bits\":4}; weights",
            ),
            (
                json!({ "rope_scaling": { "type": "yarn", "factor": 2.0 } }),
                "not supported: field \"rope_scaling.type\" = \"yarn\"; default",
            ),
            (json!({ "rope_scaling": { "rope_type": "linear" } }), "field \"rope_scaling.factor\" is missing"),
            (
                json!({ "rope_parameters": { "rope_theta": -1 } }),
                "field \"rope_parameters.rope_theta\" is -1: it must be",
            ),
            (json!({ "rope_scaling": 3 }), "field \"rope_scaling\" is 3: invalid type"),
        ];
        for (changes, expected) in cases {
            let error = llama(changes.clone()).unwrap_err();
            assert!(error.starts_with(expected), "{changes}: {error}, {expected} expected");
        }
    }

    #[test]
    fn rotary_positions_are_read_in_every_spelling() {
        let rotary = |changes| llama(changes).unwrap().rotary;
        let scaled = |scaling| RotaryConfig::new().with_theta(5e5).with_scaling(scaling);
        let linear = scaled(RotaryScaling::Linear { factor: 2.0 });
        assert_eq!(rotary(json!({ "rope_theta": 5e5 })), RotaryConfig::new().with_theta(5e5));
        assert_eq!(rotary(json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 2 } })), linear);
        assert_eq!(
            rotary(json!({ "rope_theta": 5e5, "rope_scaling": { "rope_type": "linear", "factor": 2 } })),
            linear
        );
        let parameters = json!({ "rope_theta": 5e5, "rope_type": "linear", "factor": 2.0 });
        assert_eq!(rotary(json!({ "rope_parameters": parameters })), linear);
        let mut parameters = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let llama3 = RotaryScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        assert_eq!(rotary(json!({ "rope_theta": 5e5, "rope_scaling": parameters })), scaled(llama3));
        parameters["high_freq_factor"] = json!(1.0);
        let error = llama(json!({ "rope_scaling": parameters })).unwrap_err();
        assert!(error.starts_with("field \"rope_scaling.high_freq_factor\" is 1.0: it must be above"), "{error}");
    }

    #[test]
    fn biases_are_those_of_the_family() {
        let bias = |changes| llama(changes).map(|config| (config.input_bias, config.output_bias, config.mlp_bias));
        assert_eq!(bias(json!({ "attention_bias": true, "mlp_bias": true })), Ok((true, true, true)));
        assert_eq!(bias(json!({ "model_type": "qwen2" })), Ok((true, false, false)));
        assert_eq!(bias(json!({ "model_type": "mistral", "attention_bias": true })), Ok((false, false, false)));
        let qwen3 = json!({ "model_type": "qwen3", "head_dim": 8, "attention_bias": true });
        assert_eq!(bias(qwen3), Ok((true, true, false)));
    }

    #[test]
    fn windows_are_those_of_the_family() {
        let windows = |changes| llama(changes).map(|config| config.windows);
        assert_eq!(windows(json!({ "sliding_window": 7 })), Ok(vec![None; 3]));
        assert_eq!(windows(json!({ "model_type": "mistral", "sliding_window": 7 })), Ok(vec![Some(7); 3]));
        assert_eq!(windows(json!({ "model_type": "qwen2", "sliding_window": 7 })), Ok(vec![None; 3]));
        let mut qwen = json!({ "model_type": "qwen2", "sliding_window": 7, "use_sliding_window": true });
        assert!(windows(qwen.clone()).unwrap_err().contains("max_window_layers"));
        qwen["max_window_layers"] = json!(2);
        assert_eq!(windows(qwen.clone()), Ok(vec![None, None, Some(7)]));
        qwen["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"]);
        assert_eq!(windows(qwen.clone()), Ok(vec![Some(7), None, None]));
        qwen["layer_types"] = json!(["sliding_attention"]);
        assert!(windows(qwen.clone()).unwrap_err().contains("num_hidden_layers = 3"));
        qwen["layer_types"] = json!(["sliding_attention", "linear_attention", "full_attention"]);
        assert!(windows(qwen).unwrap_err().contains("linear_attention"));
    }
}
