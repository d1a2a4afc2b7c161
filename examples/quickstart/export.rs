//! Writes a model in the layout of Hugging Face.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burn::module::{Module, ModuleMapper, Param};
use burn::nn::Linear;
use burn::tensor::{FloatDType, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::model::{Block, Llama, LlamaShape};
use crate::tokenizer::{BOS, EOS, special};

/// Rounds every weight to F16 and back, so that what is measured is what is written.
pub(crate) fn round_to_f16(model: Llama) -> Llama {
    model.map(&mut RoundToF16)
}

struct RoundToF16;

impl ModuleMapper for RoundToF16 {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|weight| weight.cast(FloatDType::F16).cast(FloatDType::F32))
    }
}

/// Writes `config.json`, `tokenizer.json` and `model.safetensors` into a folder.
pub(crate) fn write_model(folder: &Path, shape: &LlamaShape, model: &Llama, tokenizer: &Tokenizer) -> Result<()> {
    let config = serde_json::to_string_pretty(&config(shape, tokenizer)?)? + "\n";
    let vocabulary = tokenizer.to_string(true).map_err(anyhow::Error::from_boxed)?;
    write(&folder.join("config.json"), config.as_bytes())?;
    write(&folder.join("tokenizer.json"), vocabulary.as_bytes())?;
    write(&folder.join("model.safetensors"), &safetensors(model)?)
}

/// Writes a file under a temporary name and renames it, so that no reader sees a part of it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_added_extension("part");
    let write = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&part, bytes)?;
        fs::rename(&part, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

fn config(shape: &LlamaShape, tokenizer: &Tokenizer) -> Result<Value> {
    Ok(json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": special(tokenizer, BOS)?,
        "eos_token_id": special(tokenizer, EOS)?,
        "head_dim": shape.d_head,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_scaling": null,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": true,
        "torch_dtype": "float16",
        "use_cache": true,
        "vocab_size": shape.vocabulary,
    }))
}

/// A weight as it stands in the file.
struct Weight {
    name: String,
    shape: Vec<usize>,
    /// F16, little-endian, row by row.
    bytes: Vec<u8>,
}

impl Weight {
    fn new<const D: usize>(name: String, tensor: Tensor<D>) -> Self {
        let shape = tensor.dims().to_vec();
        let data = tensor.cast(FloatDType::F16).into_data();
        Self { name, shape, bytes: data.as_bytes().to_vec() }
    }

    /// Burn keeps `[d_input, d_output]`, the file `[d_output, d_input]`.
    fn linear(prefix: &str, name: &str, layer: &Linear) -> Self {
        let name = format!("{prefix}.{name}.weight");
        Self::new(name, layer.weight.val().transpose())
    }
}

fn safetensors(model: &Llama) -> Result<Vec<u8>> {
    let weights = weights(model);
    let views = weights
        .iter()
        .map(|weight| {
            let view = TensorView::new(Dtype::F16, weight.shape.clone(), &weight.bytes)?;
            Ok((weight.name.as_str(), view))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn weights(model: &Llama) -> Vec<Weight> {
    let embedding = model.embed_tokens.weight.val();
    let mut weights = vec![
        Weight::new("model.embed_tokens.weight".to_string(), embedding),
        Weight::new("model.norm.weight".to_string(), model.norm.gamma.val()),
    ];
    for (index, block) in model.layers.iter().enumerate() {
        weights.extend(block_weights(&format!("model.layers.{index}"), block));
    }
    weights
}

fn block_weights(prefix: &str, block: &Block) -> Vec<Weight> {
    let (attention, mlp) = (&block.self_attn, &block.mlp);
    let norms =
        [("input_layernorm", &block.input_layernorm), ("post_attention_layernorm", &block.post_attention_layernorm)];
    let linears = [
        ("self_attn.q_proj", &attention.q_proj),
        ("self_attn.k_proj", &attention.k_proj),
        ("self_attn.v_proj", &attention.v_proj),
        ("self_attn.o_proj", &attention.o_proj),
        ("mlp.gate_proj", &mlp.gate_proj),
        ("mlp.up_proj", &mlp.up_proj),
        ("mlp.down_proj", &mlp.down_proj),
    ];
    let norms = norms.map(|(name, norm)| Weight::new(format!("{prefix}.{name}.weight"), norm.gamma.val()));
    let linears = linears.map(|(name, layer)| Weight::linear(prefix, name, layer));
    norms.into_iter().chain(linears).collect()
}
