//! The configuration of an encoder of the BERT family.

use super::layers;
use crate::error::ModelError;
use crate::fields::Fields;
use pixel_nn::Activation;

/// An encoder of the BERT family.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BertConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Length of a token's vector.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads, a divisor of `hidden_size`.
    pub num_attention_heads: usize,
    /// Number of positions: the longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Number of token types (first and second text of a pair).
    pub type_vocab_size: usize,
    /// The ε of the layer norms.
    pub layer_norm_eps: f64,
    /// The activation of the MLP.
    pub hidden_act: Activation,
}

impl BertConfig {
    pub(super) fn read(fields: &Fields) -> Result<Self, ModelError> {
        if fields.optional::<String>("position_embedding_type")?.is_some_and(|name| name != "absolute") {
            return Err(fields.unsupported("position_embedding_type", "absolute is"));
        }
        if fields.optional::<bool>("is_decoder")?.unwrap_or(false) {
            return Err(fields.unsupported("is_decoder", "encoders are"));
        }
        let hidden_act = match fields.required::<String>("hidden_act")?.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            _ => return Err(fields.unsupported("hidden_act", "gelu, gelu_new, gelu_pytorch_tanh and relu are")),
        };
        let (hidden_size, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
        if !hidden_size.is_multiple_of(heads) {
            let reason = format!("hidden_size = {hidden_size} does not split into so many heads");
            return Err(fields.wrong("num_attention_heads", &reason));
        }
        Ok(Self {
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: layers(fields)?,
            num_attention_heads: heads,
            max_position_embeddings: fields.size("max_position_embeddings")?,
            type_vocab_size: fields.size("type_vocab_size")?,
            layer_norm_eps: fields.positive("layer_norm_eps")?,
            hidden_act,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::config::fixtures::read;
    use serde_json::{Value, json};

    fn bert(changes: Value) -> Result<BertConfig, String> {
        let base = json!({
            "model_type": "bert", "vocab_size": 10, "hidden_size": 24, "intermediate_size": 20,
            "num_hidden_layers": 3, "num_attention_heads": 6, "hidden_act": "gelu", "type_vocab_size": 2,
            "max_position_embeddings": 99, "layer_norm_eps": 1e-12,
        });
        match read(base, changes)? {
            ModelConfig::Bert(config) => Ok(config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_encoder_that_is_not_built_is_refused() {
        assert_eq!(bert(json!({ "hidden_act": "gelu_new" })).unwrap().hidden_act, Activation::GeluTanh);
        for (changes, expected) in [
            (json!({ "hidden_act": "mish" }), "not supported: field \"hidden_act\" = \"mish\"; gelu, "),
            (
                json!({ "position_embedding_type": "relative_key" }),
                "not supported: field \"position_embedding_type\" = \"relative_key\"",
            ),
            (json!({ "is_decoder": true }), "not supported: field \"is_decoder\" = true"),
            (json!({ "num_attention_heads": 5 }), "field \"num_attention_heads\" is 5: hidden_size = 24"),
        ] {
            let error = bert(changes).unwrap_err();
            assert!(error.starts_with(expected), "{error}, {expected} expected");
        }
    }
}
