//! Language models of real sizes with random weights, to be timed and counted.

use anyhow::{Context, Result};
use burn::module::Param;
use burn::nn::{Embedding, Linear, RmsNorm};
use burn::tensor::{DType, Device, Distribution, Int, Tensor};
use pixel_core::{CodecSpec, PackedWeight, Shape};
use pixel_models::llama::{GatedMlp, LlamaLayer};
use pixel_models::{Llama, LlamaCache, TokenEmbedding};
use pixel_nn::attention::{PIXELAttention, PIXELAttentionConfig, RotaryConfig};
use pixel_nn::{PIXELEmbeddingConfig, PIXELLinear, PatternWeight, Projection};
use std::collections::HashMap;
use std::str::FromStr;

/// The sizes of a decoder of the Llama family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// What it is called here.
    pub name: &'static str,
    hidden: usize,
    /// The width inside the MLP.
    inner: usize,
    /// Layers.
    pub layers: usize,
    heads: usize,
    key_heads: usize,
    vocabulary: usize,
    /// Whether the head is the embedding.
    is_tied: bool,
}

/// SmolLM2-135M, and Llama 2 of seven billion weights.
///
/// Sources: `config.json` of `HuggingFaceTB/SmolLM2-135M`; Touvron et al., <https://arxiv.org/abs/2307.09288>.
pub const MODELS: [Sizes; 2] = [
    Sizes {
        name: "smollm2-135m",
        hidden: 576,
        inner: 1536,
        layers: 30,
        heads: 9,
        key_heads: 3,
        vocabulary: 49152,
        is_tied: true,
    },
    Sizes {
        name: "llama-7b",
        hidden: 4096,
        inner: 11008,
        layers: 32,
        heads: 32,
        key_heads: 32,
        vocabulary: 32000,
        is_tied: false,
    },
];

impl FromStr for Sizes {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let names = MODELS.map(|model| model.name);
        let found = MODELS.into_iter().find(|model| model.name == name);
        found.with_context(|| format!("model \"{name}\" is none of {}", names.join(", ")))
    }
}

/// What linear layers are stored as.
#[derive(Debug, Clone, PartialEq)]
pub enum Weights {
    /// F16, and activations too.
    Dense,
    /// Codes; the embedding and a head of its own have 8 bits, as by default. Activations are F32.
    Coded(CodecSpec),
}

impl Weights {
    fn activations(&self) -> DType {
        match self {
            Self::Dense => DType::F16,
            Self::Coded(_) => DType::F32,
        }
    }
}

/// Makes the parts of a model. Weights of one shape have the same codes, each in memory of its own.
struct Parts<'a> {
    weights: &'a Weights,
    device: &'a Device,
    packed: HashMap<[usize; 2], PackedWeight>,
}

impl Parts<'_> {
    fn map(&mut self, d_input: usize, d_output: usize, codec: &CodecSpec) -> Result<Projection> {
        if *self.weights == Weights::Dense {
            let weight = Param::from_tensor(self.random([d_input, d_output]));
            return Ok(Projection::Dense(Linear { weight, bias: None }));
        }
        let packed = match self.packed.entry([d_input, d_output]) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let (shape, rotation) = (Shape::new(d_output, d_input)?, codec.family()?.rotates().then_some(0));
                let deviation = 1.0 / (d_input as f32).sqrt();
                entry.insert(PatternWeight::random(shape, codec, rotation, deviation, self.device)?.to_packed()?)
            }
        };
        let weight = PatternWeight::from_packed(packed, self.device)?;
        Ok(PIXELLinear::from_weight(weight, None, self.device)?.into())
    }

    fn random(&self, [rows, columns]: [usize; 2]) -> Tensor<2> {
        let normal = Distribution::Normal(0.0, 1.0 / (rows as f64).sqrt());
        Tensor::random([rows, columns], normal, (self.device, self.weights.activations()))
    }

    fn norm(&self, len: usize) -> RmsNorm {
        let gamma = Param::from_tensor(Tensor::ones([len], (self.device, self.weights.activations())));
        RmsNorm { gamma, epsilon: 1e-5 }
    }
}

impl Sizes {
    /// A model of this size, but of `layers` layers, on `device`.
    ///
    /// # Errors
    /// If there is no such codec, or the device has no kernels of it.
    pub fn build(&self, layers: usize, weights: &Weights, device: &Device) -> Result<Llama> {
        let Self { hidden, inner, heads, key_heads, vocabulary, .. } = *self;
        let mut parts = Parts { weights, device, packed: HashMap::new() };
        let bytes = CodecSpec::new("uniform", 8.0);
        let codec = match weights {
            Weights::Coded(codec) => codec,
            Weights::Dense => &bytes,
        };
        let embed_tokens = match weights {
            Weights::Coded(_) => TokenEmbedding::Pixel(PIXELEmbeddingConfig::new(vocabulary, hidden).try_init(device)?),
            Weights::Dense => {
                TokenEmbedding::Dense(Embedding { weight: Param::from_tensor(parts.random([vocabulary, hidden])) })
            }
        };
        let attention = PIXELAttentionConfig::new(hidden, heads).with_n_kv_heads(key_heads).with_bias(false);
        let attention = attention.with_rotary(Some(RotaryConfig::new())).with_causal(true).with_dropout(0.0);
        let keys = key_heads * hidden / heads;
        // Its dense projections are replaced: made for one shape, they are small.
        let frame = attention.with_initializer(burn::nn::Initializer::Zeros).init(device);
        let layer = |parts: &mut Parts<'_>| -> Result<LlamaLayer> {
            Ok(LlamaLayer {
                input_norm: parts.norm(hidden),
                attention: PIXELAttention {
                    query: parts.map(hidden, hidden, codec)?,
                    key: parts.map(hidden, keys, codec)?,
                    value: parts.map(hidden, keys, codec)?,
                    output: parts.map(hidden, hidden, codec)?,
                    ..frame.clone()
                },
                post_attention_norm: parts.norm(hidden),
                mlp: GatedMlp {
                    gate: parts.map(hidden, inner, codec)?,
                    up: parts.map(hidden, inner, codec)?,
                    down: parts.map(inner, hidden, codec)?,
                },
            })
        };
        let layers = (0..layers).map(|_| layer(&mut parts)).collect::<Result<_>>()?;
        let norm = parts.norm(hidden);
        let head = (!self.is_tied).then(|| parts.map(hidden, vocabulary, &bytes)).transpose()?;
        Ok(Llama::new(embed_tokens, layers, norm, head))
    }
}

/// A text that grows by the most probable token.
#[derive(Debug)]
pub struct Text<'a> {
    model: &'a Llama,
    cache: LlamaCache,
    next: Tensor<2, Int>,
}

impl<'a> Text<'a> {
    /// Reads a prompt of `len` tokens, with room for `more`.
    pub fn new(model: &'a Llama, len: usize, more: usize, device: &Device) -> Self {
        let mut cache = model.cache_with_capacity(len + more);
        let tokens = Tensor::<1, Int>::arange(0..len as i64, device).reshape([1, len]);
        let next = model.forward_cached(tokens, &mut cache).argmax(1);
        Self { model, cache, next }
    }

    /// One more token, read by the host.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn step(&mut self) -> Result<i64> {
        self.next = self.model.forward_cached(self.next.clone(), &mut self.cache).argmax(1);
        let token = self.next.clone().try_into_vec_as::<i64>();
        token.ok().and_then(|token| token.first().copied()).context("the token cannot be read")
    }
}
