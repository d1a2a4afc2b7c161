#!/usr/bin/env python3
"""A BERT sentence encoder under onnxruntime, driven by lines of JSON as `pixel-bench`'s program `sentences` is.

    onnxruntime_worker.py MODEL [--threads T] [--graph standard|fused]

MODEL is a dense Hugging Face directory: config.json, model.safetensors. The graph is made from it here: BERT in FP32,
the mean over the tokens, length 1. Requests and answers are those of pixel-bench/src/bin/sentences.rs, without
`tokenize`. Times are from the tokens to the vectors, padding included.

`standard` has the operators of ONNX alone (opset 17), as an exporter writes them, and onnxruntime fuses what it finds;
`fused` has onnxruntime's own operators for attention, for the norm of a sum and for GELU with its bias, which its
optimizer for transformers would put there. onnxruntime runs on its CPU provider with every optimization, T threads
within an operator, one operator at a time. The first line is `{"load_seconds", "system"}`.

Needs onnx, onnxruntime, numpy and safetensors; scripts/beside_onnxruntime.py installs them.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

# What may stand before the names of the tensors.
PREFIXES = ("", "bert.", "model.")
OPSET = 17
# onnxruntime's own operators.
CONTRIB = "com.microsoft"
# What is added to the scores of padding: e to its power is 0.
MASKED = -10000.0
# The least length of a vector and number of tokens that is divided by, as in pixel-models.
LEAST = 1e-9
SUPPORTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


class RequestError(Exception):
    """A request that cannot be met, or a model that cannot be loaded."""


class Graph:
    """A graph of ONNX under construction; values are known by their names."""

    def __init__(self):
        self._nodes, self._constants = [], []

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def node(self, kind, *inputs, outputs=1, domain="", **attributes):
        """The name of a new node's first output."""
        names = [f"n{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def model(self, inputs, output, width):
        """The finished model; inputs are `[batch, seq]` integers, the output is `[batch, width]`."""
        self._nodes.append(helper.make_node("Identity", [output], ["vectors"]))
        described = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in inputs]
        vectors = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", width])
        graph = helper.make_graph(self._nodes, "bert", described, [vectors], self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        # The version of the file format that belongs to the operators: a newer one may be unknown to onnxruntime.
        version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
        return helper.make_model(graph, opset_imports=opsets, ir_version=version)


class Bert:
    """BERT as nodes of a graph, from the tensors of a directory."""

    def __init__(self, directory, fused):
        directory = Path(directory)
        self._config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        for field, expected in SUPPORTED.items():
            if (found := self._config.get(field, expected)) != expected:
                raise RequestError(f"{directory}: {field} is {found}, only {expected} is known here")
        pooling = directory / "1_Pooling/config.json"
        if pooling.exists() and not json.loads(pooling.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"):
            raise RequestError(f"{pooling}: only the mean over the tokens is known here")
        self._tensors = load_file(directory / "model.safetensors")
        word = "embeddings.word_embeddings.weight"
        self._prefix = next((prefix for prefix in PREFIXES if prefix + word in self._tensors), None)
        if self._prefix is None:
            raise RequestError(f"{directory} has no tensor {word}")
        self._fused, self._graph = fused, Graph()
        self.vocabulary, self.hidden = self._tensor(word).shape
        self.positions = self._tensor("embeddings.position_embeddings.weight").shape[0]
        self._heads = self._config["num_attention_heads"]

    def _tensor(self, name):
        try:
            return self._tensors[self._prefix + name].astype(np.float32)
        except KeyError:
            raise RequestError(f"there is no tensor {self._prefix}{name}") from None

    def _ints(self, *values):
        return self._graph.constant(values, np.int64)

    def _add(self, a, b):
        return self._graph.node("Add", a, b)

    def _product(self, states, name):
        weight = self._graph.constant(self._tensor(f"{name}.weight").T)
        return self._graph.node("MatMul", states, weight)

    def _bias(self, name):
        return self._graph.constant(self._tensor(f"{name}.bias"))

    def _linear(self, states, name):
        return self._add(self._product(states, name), self._bias(name))

    def _norm(self, name):
        """The parameters of a norm, by the operators' names."""
        parameters = [self._graph.constant(self._tensor(f"{name}.{part}")) for part in ("weight", "bias")]
        return parameters, {"epsilon": self._config["layer_norm_eps"]}

    def _residual(self, states, product, bias, name):
        """The norm of states + product + bias."""
        parameters, epsilon = self._norm(name)
        if self._fused:
            inputs = (product, states, *parameters, bias)
            return self._graph.node("SkipLayerNormalization", *inputs, domain=CONTRIB, **epsilon)
        total = self._add(self._add(product, bias), states)
        return self._graph.node("LayerNormalization", total, *parameters, axis=-1, **epsilon)

    def _gelu(self, product, bias):
        node = self._graph.node
        if self._fused:
            return node("BiasGelu", product, bias, domain=CONTRIB)
        x = self._add(product, bias)
        erf = node("Erf", node("Div", x, self._graph.constant(math.sqrt(2))))
        return node("Mul", node("Mul", x, self._add(erf, self._graph.constant(1))), self._graph.constant(0.5))

    def _attention(self, states, mask, name):
        if self._fused:
            parts = [f"{name}.{part}" for part in ("query", "key", "value")]
            weight = np.concatenate([self._tensor(f"{part}.weight").T for part in parts], axis=1)
            bias = np.concatenate([self._tensor(f"{part}.bias") for part in parts])
            inputs = (states, self._graph.constant(weight), self._graph.constant(bias), mask)
            return self._graph.node("Attention", *inputs, domain=CONTRIB, num_heads=self._heads)
        node, split = self._graph.node, self._ints(0, 0, self._heads, self.hidden // self._heads)

        def heads(part, order):
            return node("Transpose", node("Reshape", self._linear(states, f"{name}.{part}"), split), perm=order)

        query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
        root = self._graph.constant(math.sqrt(self.hidden // self._heads))
        scores = self._add(node("Div", node("MatMul", query, key), root), mask)
        mixed = node("Transpose", node("MatMul", node("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
        return node("Reshape", mixed, self._ints(0, 0, self.hidden))

    def _layer(self, states, mask, name):
        mixed = self._attention(states, mask, f"{name}.attention.self")
        output = f"{name}.attention.output"
        product, bias = self._product(mixed, f"{output}.dense"), self._bias(f"{output}.dense")
        states = self._residual(states, product, bias, f"{output}.LayerNorm")
        inner, output = f"{name}.intermediate.dense", f"{name}.output"
        inner = self._gelu(self._product(states, inner), self._bias(inner))
        product, bias = self._product(inner, f"{output}.dense"), self._bias(f"{output}.dense")
        return self._residual(states, product, bias, f"{output}.LayerNorm")

    def _embedding(self):
        node, constant = self._graph.node, self._graph.constant
        word, position, types = (
            self._tensor(f"embeddings.{part}_embeddings.weight") for part in ("word", "position", "token_type")
        )
        # All tokens are of the first type.
        positions = constant(position + types[0])
        length = node("Slice", node("Shape", "ids"), self._ints(1), self._ints(2))
        positions = node("Slice", positions, self._ints(0), length, self._ints(0))
        parameters, epsilon = self._norm("embeddings.LayerNorm")
        total = self._add(node("Gather", constant(word), "ids"), positions)
        return node("LayerNormalization", total, *parameters, axis=-1, **epsilon)

    def _mask(self):
        """The mask as the attention wants it: what is added to the scores, or 1 for tokens."""
        node, constant = self._graph.node, self._graph.constant
        if self._fused:
            return node("Cast", "mask", to=TensorProto.INT32)
        kept = node("Cast", node("Unsqueeze", "mask", self._ints(1, 2)), to=TensorProto.FLOAT)
        return node("Mul", node("Sub", constant(1), kept), constant(MASKED))

    def _pooled(self, states):
        """The mean of the states that are no padding, of length 1."""
        node, least = self._graph.node, self._graph.constant(LEAST)
        kept = node("Cast", node("Unsqueeze", "mask", self._ints(2)), to=TensorProto.FLOAT)
        total = node("ReduceSum", node("Mul", states, kept), self._ints(1), keepdims=0)
        mean = node("Div", total, node("Max", node("ReduceSum", kept, self._ints(1), keepdims=0), least))
        return node("Div", mean, node("Max", node("ReduceL2", mean, axes=[1], keepdims=1), least))

    def model(self):
        states, mask = self._embedding(), self._mask()
        for layer in range(self._config["num_hidden_layers"]):
            states = self._layer(states, mask, f"encoder.layer.{layer}")
        return self._graph.model(["ids", "mask"], self._pooled(states), self.hidden)


class Session:
    """A model that is loaded."""

    def __init__(self, args):
        bert = Bert(args.model, args.graph == "fused")
        self._vocabulary, self._positions = bert.vocabulary, bert.positions
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        model = bert.model()
        onnx.checker.check_model(model)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def obey(self, request):
        match request:
            case {"embed": sentences, "batch": batch, "rounds": rounds}:
                self._check(sentences, batch)
                return {"seconds": [self._time(sentences, batch) for _ in range(rounds)]}
            case {"vectors": sentences, "batch": batch}:
                self._check(sentences, batch)
                return {"vectors": self._embed(sentences, batch).tolist()}
        raise RequestError(f"not a request: {json.dumps(request)[:80]}")

    def _check(self, sentences, batch):
        if batch < 1 or not sentences:
            raise RequestError("no sentences, or batches of none")
        for tokens in sentences:
            if not 1 <= len(tokens) <= self._positions:
                raise RequestError(f"a sentence of {len(tokens)} tokens, not 1 to {self._positions}")
            if not 0 <= min(tokens) <= max(tokens) < self._vocabulary:
                raise RequestError(f"tokens from {min(tokens)} to {max(tokens)}, the model has {self._vocabulary}")

    def _time(self, sentences, batch):
        start = time.perf_counter()
        vectors = self._embed(sentences, batch)
        seconds = time.perf_counter() - start
        if not np.isfinite(vectors).all():
            raise RequestError("vectors that are no numbers")
        return seconds

    def _embed(self, sentences, batch):
        vectors = []
        for begin in range(0, len(sentences), batch):
            chosen = sentences[begin : begin + batch]
            shape = (len(chosen), max(map(len, chosen)))
            ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            for row, tokens in enumerate(chosen):
                ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            vectors.extend(self._session.run(None, {"ids": ids, "mask": mask}))
        return np.concatenate(vectors)


def answer(value):
    print(json.dumps(value), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--graph", choices=["standard", "fused"], default="standard")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        session = Session(args)
    except (RequestError, OSError, KeyError, ValueError) as error:
        sys.exit(f"onnxruntime_worker: cannot load {args.model}: {error}")
    load_seconds = time.perf_counter() - start
    answer({"load_seconds": load_seconds, "system": f"onnxruntime {onnxruntime.__version__}"})
    for line in sys.stdin:
        try:
            answer(session.obey(json.loads(line)))
        except (RequestError, ValueError, TypeError) as error:
            answer({"error": str(error)})


main()
