//! The Llama architecture in Burn modules, small enough to train on one processor core.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Initializer, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Int, Tensor};

use crate::positions::Positions;

/// The shape of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LlamaShape {
    /// Number of tokens in the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Width inside the feed-forward part.
    pub intermediate: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Added to the mean square before the root.
    pub norm_epsilon: f64,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
}

impl LlamaShape {
    /// The model of the quickstart: 853,120 parameters.
    pub(crate) const QUICKSTART: Self = Self {
        vocabulary: 512,
        hidden: 128,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        d_head: 32,
        intermediate: 384,
        context: 256,
        norm_epsilon: 1e-5,
        rope_theta: 10_000.0,
    };

    /// A model of this shape with random weights.
    pub(crate) fn init(&self, device: &Device) -> Llama {
        let embedding =
            EmbeddingConfig::new(self.vocabulary, self.hidden).with_initializer(normal(INIT_STD)).init(device);
        Llama {
            embed_tokens: embedding,
            layers: (0..self.layers).map(|_| self.block(device)).collect(),
            norm: self.norm(device),
        }
    }

    fn block(&self, device: &Device) -> Block {
        // What enters the residual stream is scaled down, so that the stream's variance at the
        // top does not grow with the number of blocks.
        let residual = INIT_STD / (2.0 * self.layers as f64).sqrt();
        let (d_query, d_kv) = (self.heads * self.d_head, self.kv_heads * self.d_head);
        Block {
            input_layernorm: self.norm(device),
            self_attn: Attention {
                q_proj: linear(self.hidden, d_query, INIT_STD, device),
                k_proj: linear(self.hidden, d_kv, INIT_STD, device),
                v_proj: linear(self.hidden, d_kv, INIT_STD, device),
                o_proj: linear(d_query, self.hidden, residual, device),
                heads: self.heads,
                kv_heads: self.kv_heads,
                d_head: self.d_head,
            },
            post_attention_layernorm: self.norm(device),
            mlp: FeedForward {
                gate_proj: linear(self.hidden, self.intermediate, INIT_STD, device),
                up_proj: linear(self.hidden, self.intermediate, INIT_STD, device),
                down_proj: linear(self.intermediate, self.hidden, residual, device),
            },
        }
    }

    fn norm(&self, device: &Device) -> RmsNorm {
        RmsNormConfig::new(self.hidden).with_epsilon(self.norm_epsilon).init(device)
    }
}

/// Standard deviation of the initial weights, about half of `1 / √hidden`.
const INIT_STD: f64 = 0.05;

fn normal(std: f64) -> Initializer {
    Initializer::Normal { mean: 0.0, std }
}

fn linear(d_input: usize, d_output: usize, std: f64, device: &Device) -> Linear {
    LinearConfig::new(d_input, d_output).with_bias(false).with_initializer(normal(std)).init(device)
}

/// A language model whose output layer is its embedding, transposed.
///
/// The fields bear the names of the Hugging Face layout.
#[derive(Module, Debug)]
pub(crate) struct Llama {
    /// One row per token, `[vocabulary, hidden]`.
    pub embed_tokens: Embedding,
    /// The blocks, from the input upwards.
    pub layers: Vec<Block>,
    /// The norm before the output layer.
    pub norm: RmsNorm,
}

impl Llama {
    /// The logits of the token that follows each position.
    ///
    /// # Shapes
    /// - tokens: `[batch, length]`
    /// - output: `[batch * length, vocabulary]`
    pub(crate) fn forward(&self, tokens: Tensor<2, Int>, positions: &Positions) -> Tensor<2> {
        let mut stream = self.embed_tokens.forward(tokens);
        for layer in &self.layers {
            stream = layer.forward(stream, positions);
        }
        let [batch, length, hidden] = stream.dims();
        let stream = self.norm.forward(stream).reshape([batch * length, hidden]);
        stream.matmul(self.embed_tokens.weight.val().transpose())
    }
}

/// Attention, then a feed-forward part, each added to the residual stream.
#[derive(Module, Debug)]
pub(crate) struct Block {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// The part that looks back.
    pub self_attn: Attention,
    /// The norm before the feed-forward part.
    pub post_attention_layernorm: RmsNorm,
    /// The part that treats each position alone.
    pub mlp: FeedForward,
}

impl Block {
    fn forward(&self, stream: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let normed = self.input_layernorm.forward(stream.clone());
        let stream = stream + self.self_attn.forward(normed, positions);
        let normed = self.post_attention_layernorm.forward(stream.clone());
        stream + self.mlp.forward(normed)
    }
}

/// Causal attention with rotary positions, several query heads per key head.
#[derive(Module, Debug)]
pub(crate) struct Attention {
    /// Queries, `[hidden, heads * d_head]`.
    pub q_proj: Linear,
    /// Keys, `[hidden, kv_heads * d_head]`.
    pub k_proj: Linear,
    /// Values, `[hidden, kv_heads * d_head]`.
    pub v_proj: Linear,
    /// Output, `[heads * d_head, hidden]`.
    pub o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    d_head: usize,
}

impl Attention {
    fn forward(&self, input: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let [batch, length, _] = input.dims();
        let query = self.split(self.q_proj.forward(input.clone()), self.heads);
        let key = self.split(self.k_proj.forward(input.clone()), self.kv_heads);
        let value = self.split(self.v_proj.forward(input), self.kv_heads);

        // The query heads of one key head are stacked along the length: one product serves all.
        let stacked = self.heads / self.kv_heads * length;
        let query = positions.rotate(query) / (self.d_head as f64).sqrt();
        let query = query.reshape([batch, self.kv_heads, stacked, self.d_head]);
        let scores = query.matmul(positions.rotate(key).transpose());
        let mask = positions.mask(self.heads / self.kv_heads, length);
        let mixed = softmax(scores + mask, 3).matmul(value);

        let mixed = mixed.reshape([batch, self.heads, length, self.d_head]);
        let mixed = mixed.swap_dims(1, 2);
        self.o_proj.forward(mixed.reshape([batch, length, self.heads * self.d_head]))
    }

    /// `[batch, length, heads * d_head]` to `[batch, heads, length, d_head]`.
    fn split(&self, joined: Tensor<3>, heads: usize) -> Tensor<4> {
        let [batch, length, _] = joined.dims();
        joined.reshape([batch, length, heads, self.d_head]).swap_dims(1, 2)
    }
}

/// The gated feed-forward part: `down(silu(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub(crate) struct FeedForward {
    /// What is let through, `[hidden, intermediate]`.
    pub gate_proj: Linear,
    /// What passes the gate, `[hidden, intermediate]`.
    pub up_proj: Linear,
    /// Back to the stream, `[intermediate, hidden]`.
    pub down_proj: Linear,
}

impl FeedForward {
    fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        let gate = silu(self.gate_proj.forward(input.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(input))
    }
}
