#!/usr/bin/env python3
"""Tiny seeded checkpoints in Hugging Face layout, with the outputs that a correct reader of them computes.

    golden_models.py          writes pixel-models/tests/models/{llama,llama3_rope,mistral_window,qwen2,qwen3,bert}/
    golden_models.py --check  computes the outputs of the files there again and exits 1 if one differs

Each folder has config.json and model.safetensors, with the fields and tensor names of transformers, and
expected.safetensors: `tokens` and `logits` of a language model; of the encoder `tokens`, `attention_mask` (1 is a
token), `states` and `embedding`, the mean of the states of unmasked tokens, of length 1. States of masked places are
there as well: such a place asks like any other, but nobody sees it.

The models are derived here from their papers and from the documentation of transformers, in numpy and 64-bit floats,
without torch and without code of transformers or of PIXEL:

- Llama, https://arxiv.org/abs/2302.13971: RMSNorm before each block, gated SiLU, rotary positions;
  grouped queries as in https://arxiv.org/abs/2305.13245.
- Rotary positions, https://arxiv.org/abs/2104.09864, in the order of Hugging Face: entries i and i + d_head/2 turn
  together. Llama 3.1 divides low frequencies by `factor`, https://arxiv.org/abs/2407.21783 and
  https://huggingface.co/docs/transformers/internal/rope_utils.
- Mistral, https://arxiv.org/abs/2310.06825: query i sees the keys i - window + 1 to i, its own among them, as
  transformers/masking_utils.py counts (older releases and the Flax model let it see one more).
- Qwen2, https://arxiv.org/abs/2407.10671: biases at query, key and value, none at the output.
- Qwen3, https://arxiv.org/abs/2505.09388: RMSNorm of each head's query and key before they turn, no biases.
- BERT, https://arxiv.org/abs/1810.04805: LayerNorm after each block, exact GELU. Names as in
  sentence-transformers/all-MiniLM-L6-v2, with the pooler and the position numbers that its file carries unused.

The Flax models of transformers 4.46.3, in 32-bit floats, gave the outputs of llama, mistral_window (with its window set
to 3, see above) and bert to within 6e-7 of the largest. It has none for the others.

A weight has standard deviation 1/4, so that attention is neither flat nor one-hot, and norms are not 1 and biases not
0, so that each left out shows. Fields with a usual value have another one where a reader could assume it.

Needs numpy and safetensors.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

FOLDER = Path(__file__).resolve().parent.parent / "pixel-models/tests/models"

BATCH, LENGTH = 2, 11
PADDED = 4  # masked places at the end of the encoder's second row
# Rounding the outputs to F32 costs 6e-8 of the largest; numpy sums in another order on another machine.
TOLERANCE = 1e-6


# Configurations


def decoder_config(architecture, model_type, **fields):
    """What the language models have in common; `None` takes a field away."""
    config = {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "model_type": model_type,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 48,
    }
    return config | fields


CONFIGS = {
    "llama": decoder_config(
        "LlamaForCausalLM",
        "llama",
        attention_bias=False,
        dtype="float32",
        head_dim=8,
        mlp_bias=False,
        pad_token_id=None,
        pretraining_tp=1,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        transformers_version="5.0.0",
    ),
    # Wavelengths 6, 167, 4443 and 118144: one is kept, one falls between 256/4 and 256/1, two are divided.
    "llama3_rope": decoder_config(
        "LlamaForCausalLM",
        "llama",
        attention_bias=True,
        head_dim=8,
        max_position_embeddings=2048,
        mlp_bias=False,
        pretraining_tp=1,
        rms_norm_eps=0.02,
        rope_scaling={
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 256,
            "rope_type": "llama3",
        },
        rope_theta=500000.0,
        torch_dtype="float32",
        transformers_version="4.46.0",
    ),
    "mistral_window": decoder_config(
        "MistralForCausalLM",
        "mistral",
        rope_theta=10000.0,
        sliding_window=4,
        torch_dtype="float32",
        transformers_version="4.34.0",
    ),
    # The window has a width and is off, as in the published files.
    "qwen2": decoder_config(
        "Qwen2ForCausalLM",
        "qwen2",
        max_window_layers=2,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        sliding_window=4,
        tie_word_embeddings=True,
        torch_dtype="float32",
        transformers_version="4.40.1",
        use_sliding_window=False,
    ),
    "qwen3": decoder_config(
        "Qwen3ForCausalLM",
        "qwen3",
        attention_bias=False,
        head_dim=12,
        max_window_layers=2,
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=1000000.0,
        sliding_window=None,
        tie_word_embeddings=True,
        torch_dtype="float32",
        transformers_version="4.51.0",
        use_sliding_window=False,
    ),
    "bert": {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 24,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 16,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.8.2",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 48,
    },
}


# Checkpoints


class Checkpoint(dict):
    """Tensors by name, filled with random numbers."""

    def __init__(self, seed):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def draw(self, name, *shape, mean=0.0, deviation=0.25):
        self[name] = (mean + deviation * self.random.standard_normal(shape)).astype(np.float32)

    def linear(self, name, d_input, d_output, bias):
        self.draw(f"{name}.weight", d_output, d_input)
        if bias:
            self.draw(f"{name}.bias", d_output)

    def norm(self, name, length, bias=False):
        self.draw(f"{name}.weight", length, mean=1.0)
        if bias:
            self.draw(f"{name}.bias", length)


def head_size(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def decoder_checkpoint(config, seed):
    tensors = Checkpoint(seed)
    hidden, inner, d_head = config["hidden_size"], config["intermediate_size"], head_size(config)
    queries, keys = config["num_attention_heads"] * d_head, config["num_key_value_heads"] * d_head
    kind = config["model_type"]
    bias = config.get("attention_bias", False)
    tensors.draw("model.embed_tokens.weight", config["vocab_size"], hidden, deviation=1.0)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        tensors.norm(f"{name}.input_layernorm", hidden)
        tensors.linear(f"{name}.self_attn.q_proj", hidden, queries, bias or kind == "qwen2")
        tensors.linear(f"{name}.self_attn.k_proj", hidden, keys, bias or kind == "qwen2")
        tensors.linear(f"{name}.self_attn.v_proj", hidden, keys, bias or kind == "qwen2")
        tensors.linear(f"{name}.self_attn.o_proj", queries, hidden, bias)
        if kind == "qwen3":
            tensors.norm(f"{name}.self_attn.q_norm", d_head)
            tensors.norm(f"{name}.self_attn.k_norm", d_head)
        tensors.norm(f"{name}.post_attention_layernorm", hidden)
        tensors.linear(f"{name}.mlp.gate_proj", hidden, inner, False)
        tensors.linear(f"{name}.mlp.up_proj", hidden, inner, False)
        tensors.linear(f"{name}.mlp.down_proj", inner, hidden, False)
    tensors.norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        tensors.linear("lm_head", hidden, config["vocab_size"], False)
    return tensors


def bert_checkpoint(config, seed):
    tensors = Checkpoint(seed)
    hidden, inner, places = config["hidden_size"], config["intermediate_size"], config["max_position_embeddings"]
    tensors["embeddings.position_ids"] = np.arange(places, dtype=np.int64)[None]
    tensors.draw("embeddings.word_embeddings.weight", config["vocab_size"], hidden, deviation=1.0)
    tensors.draw("embeddings.position_embeddings.weight", places, hidden, deviation=0.5)
    tensors.draw("embeddings.token_type_embeddings.weight", config["type_vocab_size"], hidden, deviation=0.5)
    tensors.norm("embeddings.LayerNorm", hidden, bias=True)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            tensors.linear(f"{name}.attention.self.{part}", hidden, hidden, True)
        tensors.linear(f"{name}.attention.output.dense", hidden, hidden, True)
        tensors.norm(f"{name}.attention.output.LayerNorm", hidden, bias=True)
        tensors.linear(f"{name}.intermediate.dense", hidden, inner, True)
        tensors.linear(f"{name}.output.dense", inner, hidden, True)
        tensors.norm(f"{name}.output.LayerNorm", hidden, bias=True)
    tensors.linear("pooler.dense", hidden, hidden, True)
    return tensors


# Arithmetic; weights are [d_output, d_input], states [batch, seq, hidden].


class Weights:
    """The tensors of a checkpoint in 64-bit floats."""

    def __init__(self, tensors):
        self.tensors = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def __getitem__(self, name):
        return self.tensors[name]

    def linear(self, name, states):
        product = np.einsum("...i,oi->...o", states, self[f"{name}.weight"])
        return product + self.tensors.get(f"{name}.bias", 0.0)

    def rms_norm(self, name, states, eps):
        return states / np.sqrt((states**2).mean(-1, keepdims=True) + eps) * self[f"{name}.weight"]

    def layer_norm(self, name, states, eps):
        centred = states - states.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / np.sqrt(variance + eps) * self[f"{name}.weight"] + self[f"{name}.bias"]


def softmax(scores):
    power = np.exp(scores - scores.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def silu(x):
    return x / (1.0 + np.exp(-x))


def gelu(x):
    """x·Φ(x), with the exact distribution function."""
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def split_heads(states, d_head):
    """[batch, seq, heads·d_head] to [batch, heads, seq, d_head]."""
    batch, length, width = states.shape
    return states.reshape(batch, length, width // d_head, d_head).transpose(0, 2, 1, 3)


def attend(query, key, value, visible):
    """Softmax attention of [batch, heads, seq, d_head]; `visible` spreads over [batch, heads, query, key]."""
    scores = np.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])
    mixed = np.einsum("bhqk,bhkd->bhqd", softmax(np.where(visible, scores, -np.inf)), value)
    batch, heads, length, d_head = mixed.shape
    return mixed.transpose(0, 2, 1, 3).reshape(batch, length, heads * d_head)


def frequencies(config):
    """Radians per place of the d_head/2 turning pairs."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta") or config["rope_theta"]
    d_head = head_size(config)
    plain = np.array([theta ** (-2.0 * pair / d_head) for pair in range(d_head // 2)])
    if parameters.get("rope_type", "default") == "default":
        return plain
    assert parameters["rope_type"] == "llama3"
    factor, low, high = (parameters[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    # How often a pair turns within the length that the model was first trained with.
    turns = parameters["original_max_position_embeddings"] * plain / (2.0 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * plain + (1.0 - kept) * plain / factor


def rotate(heads, radians):
    """Turns the pairs (i, i + d_head/2) of place t by t·radians[i]."""
    angle = np.arange(heads.shape[-2])[:, None] * radians
    first, second = np.split(heads, 2, axis=-1)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


# Models


def causal(config, length):
    """[query, key]: whether the query sees the key."""
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return (distance >= 0) & (distance < (window or length))


def decoder_logits(config, weights, tokens):
    d_head, eps = head_size(config), config["rms_norm_eps"]
    shared = config["num_attention_heads"] // config["num_key_value_heads"]
    radians, visible = frequencies(config), causal(config, tokens.shape[1])
    states = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        inputs = weights.rms_norm(f"{name}.input_layernorm", states, eps)
        query, key, value = (
            split_heads(weights.linear(f"{name}.self_attn.{part}_proj", inputs), d_head) for part in "qkv"
        )
        if config["model_type"] == "qwen3":
            query = weights.rms_norm(f"{name}.self_attn.q_norm", query, eps)
            key = weights.rms_norm(f"{name}.self_attn.k_norm", key, eps)
        key, value = np.repeat(rotate(key, radians), shared, axis=1), np.repeat(value, shared, axis=1)
        mixed = attend(rotate(query, radians), key, value, visible)
        states = states + weights.linear(f"{name}.self_attn.o_proj", mixed)
        inputs = weights.rms_norm(f"{name}.post_attention_layernorm", states, eps)
        gate, up = (weights.linear(f"{name}.mlp.{part}_proj", inputs) for part in ("gate", "up"))
        states = states + weights.linear(f"{name}.mlp.down_proj", silu(gate) * up)
    states = weights.rms_norm("model.norm", states, eps)
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return weights.linear(head, states)


def bert_states(config, weights, tokens, mask):
    d_head, eps = head_size(config), config["layer_norm_eps"]
    visible = (mask == 1)[:, None, None, :]
    states = weights["embeddings.word_embeddings.weight"][tokens]
    states = states + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    states = states + weights["embeddings.token_type_embeddings.weight"][0]
    states = weights.layer_norm("embeddings.LayerNorm", states, eps)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            split_heads(weights.linear(f"{name}.attention.self.{part}", states), d_head)
            for part in ("query", "key", "value")
        )
        mixed = weights.linear(f"{name}.attention.output.dense", attend(query, key, value, visible))
        states = weights.layer_norm(f"{name}.attention.output.LayerNorm", states + mixed, eps)
        inner = gelu(weights.linear(f"{name}.intermediate.dense", states))
        inner = weights.linear(f"{name}.output.dense", inner)
        states = weights.layer_norm(f"{name}.output.LayerNorm", states + inner, eps)
    return states


def mean_embedding(states, mask):
    """The mean of the states of tokens, of length 1: [batch, hidden]."""
    mean = (states * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
    return mean / np.sqrt((mean**2).sum(-1, keepdims=True))


def outputs(config, tensors, inputs):
    """What expected.safetensors has beside the inputs, in 64-bit floats."""
    weights, tokens = Weights(tensors), inputs["tokens"]
    if config["model_type"] != "bert":
        return {"logits": decoder_logits(config, weights, tokens)}
    mask = inputs["attention_mask"]
    states = bert_states(config, weights, tokens, mask)
    return {"states": states, "embedding": mean_embedding(states, mask)}


# Files


def draw_inputs(config, seed):
    random = np.random.default_rng(seed)
    tokens = random.integers(3, config["vocab_size"], (BATCH, LENGTH), dtype=np.int64)
    if config["model_type"] != "bert":
        return {"tokens": tokens}
    mask = np.ones((BATCH, LENGTH), dtype=np.int64)
    mask[1, LENGTH - PADDED :] = 0
    return {"tokens": np.where(mask == 1, tokens, config["pad_token_id"]), "attention_mask": mask}


def write(name, seed):
    config = CONFIGS[name]
    make = bert_checkpoint if config["model_type"] == "bert" else decoder_checkpoint
    tensors = dict(make(config, seed))
    inputs = draw_inputs(config, 1000 + seed)
    results = {key: value.astype(np.float32) for key, value in outputs(config, tensors, inputs).items()}
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(inputs | results, folder / "expected.safetensors")


def check(name):
    """The largest difference of a stored output, relative to the output's largest value."""
    folder = FOLDER / name
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "expected.safetensors")
    results = outputs(config, load_file(folder / "model.safetensors"), stored)
    return max(float(abs(stored[key] - value).max() / abs(value).max()) for key, value in results.items())


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    if not arguments:
        for seed, name in enumerate(CONFIGS):
            write(name, seed)
    differences = {name: check(name) for name in CONFIGS}
    for name, difference in differences.items():
        size = sum(file.stat().st_size for file in (FOLDER / name).iterdir())
        print(f"{name}: {size} bytes, largest difference {difference:.1e}")
    if not max(differences.values()) < TOLERANCE:
        sys.exit("the outputs are not those of the stored weights")


main(sys.argv[1:])
