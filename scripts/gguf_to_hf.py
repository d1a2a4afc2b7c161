#!/usr/bin/env python3
"""Converts a SmolLM2 GGUF file into a folder in Hugging Face layout.

    gguf_to_hf.py MODEL.gguf OUT [--shards N]

Writes OUT/config.json, generation_config.json, tokenizer.json, tokenizer_config.json and the weights as
model.safetensors, or as N shards with model.safetensors.index.json. OUT must not exist.

Weights are stored as F32. A Q4_1 value is `d·q + m` (q of 4 bits, d and m in F16) and a Q8_0 value `d·q` (q of
8 bits): F32 holds every value of this model exactly, F16 would round two in five of them.

Query and key rows go back to Hugging Face's order. GGUF stores them for a rotary embedding that turns neighbours
(2i, 2i+1), Hugging Face for one that turns (i, i + d_head/2).
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
CONTROL_TOKEN = 3  # tokenizer.ggml.token_type: 1 is an ordinary token, 3 a special one.


class ConversionError(Exception):
    """The GGUF file is not a model that this script can convert faithfully."""


class Metadata:
    """The key/value part of a GGUF file; a key that is missing is an error that names it."""

    def __init__(self, reader):
        self._fields = reader.fields

    def __getitem__(self, key):
        if key not in self._fields:
            raise ConversionError(f"the file has no metadata key '{key}'")
        return self._fields[key].contents()

    def require(self, key, expected):
        if self[key] != expected:
            raise ConversionError(f"'{key}' is {self[key]!r}, only {expected!r} is supported")

    def real(self, key):
        """An F32 field as the shortest decimal that names it: 1e-05, not 9.999999747378752e-06."""
        return float(str(np.float32(self[key])))


def model_config(meta, tied):
    """config.json of a LlamaForCausalLM."""
    meta.require("general.architecture", "llama")
    hidden, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    if hidden != heads * meta["llama.rope.dimension_count"]:
        raise ConversionError(f"{heads} heads of {meta['llama.rope.dimension_count']} do not make a width of {hidden}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": meta.real("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.real("llama.rope.freq_base"),
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
        "use_cache": True,
    }


def generation_config(config):
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def special_tokens(meta):
    """The special tokens as (id, text), in the order of their ids."""
    kinds = meta["tokenizer.ggml.token_type"]
    return [(i, text) for i, text in enumerate(meta["tokenizer.ggml.tokens"]) if kinds[i] == CONTROL_TOKEN]


def tokenizer(meta):
    """tokenizer.json: a byte-level BPE that splits numbers into single digits first."""
    meta.require("tokenizer.ggml.model", "gpt2")
    meta.require("tokenizer.ggml.pre", "smollm")
    meta.require("tokenizer.ggml.add_bos_token", False)
    vocab = {text: i for i, text in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = meta["tokenizer.ggml.merges"]
    unknown = next((m for m in merges if m.count(" ") != 1 or m.replace(" ", "") not in vocab), None)
    if unknown is not None:
        raise ConversionError(f"merge {unknown!r} does not make a token of the vocabulary")
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for i, text in special_tokens(meta)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {**byte_level, "add_prefix_space": False},
            ],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def tokenizer_config(meta):
    tokens = meta["tokenizer.ggml.tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": meta["tokenizer.ggml.add_space_prefix"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "added_tokens_decoder": {str(i): {"content": text, **flags} for i, text in special_tokens(meta)},
        "chat_template": meta["tokenizer.chat_template"],
    }


def hf_name(gguf_name):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if gguf_name in GLOBAL_NAMES:
        return GLOBAL_NAMES[gguf_name]
    match = LAYER_TENSOR.fullmatch(gguf_name)
    if match is None or match[2] not in LAYER_NAMES:
        raise ConversionError(f"tensor '{gguf_name}' has no place in a Llama model")
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"


def expected_shapes(config):
    """Every tensor of the model with its shape, in the order of the forward pass."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    embedding = (config["vocab_size"], hidden)
    shapes = {"model.embed_tokens.weight": embedding}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = embedding
    return shapes


def rows_in_hf_order(weight, heads):
    """Row 2i + j of a head, GGUF's order, becomes row i + j·d_head/2, for j in {0, 1}."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_weights(reader, config):
    """All weights in F32 under their Hugging Face names, in the order of `expected_shapes`."""
    heads_of = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    weights = {}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        projection = name.split(".")[-2]
        if projection in heads_of:
            weight = rows_in_hf_order(weight, heads_of[projection])
        weights[name] = np.ascontiguousarray(weight)

    shapes = expected_shapes(config)
    for name in shapes.keys() | weights.keys():
        found = weights[name].shape if name in weights else None
        if shapes.get(name) != found:
            raise ConversionError(f"'{name}' has shape {found}, the configuration says {shapes.get(name)}")
    return {name: weights[name] for name in shapes}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_weights(out, weights, shards):
    """One file, or `shards` files of about equal size and the index that says which tensor lies where."""
    if shards == 1:
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(weight.nbytes for weight in weights.values())
    parts, done = [{} for _ in range(shards)], 0
    for name, weight in weights.items():
        parts[done * shards // total][name] = weight
        done += weight.nbytes
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        if not part:
            raise ConversionError(f"the weights do not fill {shards} shards")
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file(part, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(out / "model.safetensors.index.json", index)


def convert(gguf, out, shards):
    reader = GGUFReader(gguf)
    meta = Metadata(reader)
    config = model_config(meta, tied=all(tensor.name != "output.weight" for tensor in reader.tensors))
    weights = read_weights(reader, config)
    out.mkdir()
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", generation_config(config))
    write_json(out / "tokenizer.json", tokenizer(meta))
    write_json(out / "tokenizer_config.json", tokenizer_config(meta))
    write_weights(out, weights, shards)


def main():
    parser = argparse.ArgumentParser(description="Converts a SmolLM2 GGUF file into a folder in Hugging Face layout.")
    parser.add_argument("gguf", type=Path, metavar="MODEL.gguf")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make; it must not exist")
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="files to spread the weights over (default 1)")
    arguments = parser.parse_args()
    if arguments.shards < 1:
        parser.error("--shards must be 1 or more")
    try:
        convert(arguments.gguf, arguments.out, arguments.shards)
    except (ConversionError, OSError, ValueError) as error:
        sys.exit(f"gguf_to_hf: {arguments.gguf}: {error}")


if __name__ == "__main__":
    main()
