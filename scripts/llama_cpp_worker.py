#!/usr/bin/env python3
"""One GGUF model under llama.cpp, driven by lines of JSON as `pixel-bench`'s program `generation` is.

    llama_cpp_worker.py MODEL.gguf [--threads T] [--capacity TOKENS]

The requests and answers are those of pixel-bench/src/bin/generation.rs, and so are the tokens that are read. The
first line has one field more, `system`: what llama.cpp says about its build. Times begin where `llama_backend_init` is
called and end with the logits of the last token: Python's start and the import of the package are not in them, and what
they hold in memory is not in `peak_bytes`.

llama.cpp runs with its own defaults (memory map, weights repacked for the processor, flash attention where it wants
it, keys and values in F16), T threads for prompts and for single tokens, batches of 512. Only logits that are needed
are computed: those of the last token of a batch, and where texts are scored those that are scored.

Needs llama-cpp-python, which scripts/llama-cpp.sh builds, and numpy, which comes with it.
"""

import argparse
import ctypes
import json
import os
import sys
import time

import numpy as np
from llama_cpp import llama_cpp as llama

PROMPT = 16  # Tokens before the first one that is made, as in generation.rs.
BATCH = 512
SEQUENCE = 0
LOG_ERROR = 4  # `enum ggml_log_level`.


class RequestError(Exception):
    """A request that cannot be met."""


def status_bytes(name):
    """A line of /proc/self/status that is in kilobytes, in bytes; None where the system has none."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:")), None)
    except FileNotFoundError:
        return None


@llama.llama_log_callback
def warn(level, text, _data):
    """Lets errors of llama.cpp through, and nothing else."""
    if level == LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


class Context:
    """A model's cache and what it has read: always the tokens that `token_at` names, from place 0 on.

    `outputs` is the most logits that a batch may ask for.
    """

    def __init__(self, model, threads, capacity, outputs):
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = capacity, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        params.n_outputs_max = params.n_outputs_max_per_seq = outputs
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            sys.exit("llama_cpp_worker: llama.cpp made no context")
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._capacity = capacity
        self._len = 0

    def close(self):
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)

    def decode(self, tokens, first_output):
        """Reads at most BATCH tokens; logits are computed from the index `first_output` on."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._len + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, SEQUENCE
            batch.logits[i] = i >= first_output
        if status := llama.llama_decode(self._context, batch):
            raise RequestError(f"llama_decode returned {status}")
        self._len += len(tokens)

    def logits(self, index):
        """The logits after a token of the last batch, `[vocabulary]`, until the next one."""
        found = llama.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(found, shape=(self._vocabulary,))

    def read(self, count):
        """Reads the next `count` tokens, and the logits that follow them."""
        if count <= 0 or self._len + count > self._capacity:
            raise RequestError(f"{self._len} + {count} tokens, room for {self._capacity}")
        for begin in range(self._len, self._len + count, BATCH):
            size = min(BATCH, self._len + count - begin)
            self.decode([token_at(place, self._vocabulary) for place in range(begin, begin + size)], size - 1)
            count -= size
        if not np.isfinite(self.logits(size - 1)).all():
            raise RequestError("logits that are no numbers")

    def truncate(self, length):
        """Forgets the tokens from `length` on."""
        if length < self._len:
            llama.llama_memory_seq_rm(self._memory, SEQUENCE, length, -1)
            self._len = length

    def extend_to(self, length):
        """Reads on until `length` tokens are held."""
        if self._len < length:
            self.read(length - self._len)

    def time(self, rounds, context, work):
        """The seconds that `work` takes, each time after the same `context` tokens."""
        seconds = []
        for _ in range(rounds):
            self.truncate(context)
            self.extend_to(context)
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}


def token_at(place, vocabulary):
    """The token at a place: spread over the vocabulary, and the same in every program that is timed."""
    return (place * 7919 + 104_729) % vocabulary


class Session:
    """A loaded model, and the context in which it is timed."""

    def __init__(self, path, threads, capacity):
        self._resident_before = status_bytes("VmRSS")
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self._model:
            sys.exit(f"llama_cpp_worker: cannot load {path}")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._threads = threads
        self.context = Context(self._model, threads, capacity, 1)

    def obey(self, request):
        match request:
            case {"prefill": count, "rounds": rounds}:
                return self.context.time(rounds, 0, lambda: self.context.read(count))
            case {"decode": count, "context": length, "rounds": rounds}:
                return self.context.time(rounds, length, lambda: [self.context.read(1) for _ in range(count)])
            case {"score": windows}:
                return self.score(windows)
            case {"tokenize": text}:
                return self.tokenize(text)
            case {"memory": True}:
                peak, before = status_bytes("VmHWM"), self._resident_before
                return {"peak_bytes": None if peak is None else peak - before}
        raise RequestError(f"not a request: {json.dumps(request)[:80]}")

    def score(self, windows):
        """The mean negative log likelihood of what the places from the middle of each window on predict."""
        longest = max(map(len, windows))
        context = Context(self._model, self._threads, longest, BATCH)
        try:
            losses = [loss for window in windows for loss in self._window_losses(context, window)]
        finally:
            context.close()
        return {"negative_log_likelihood": float(np.mean(losses)), "tokens": len(losses)}

    @staticmethod
    def _window_losses(context, window):
        context.truncate(0)
        for begin in range(0, len(window), BATCH):
            tokens = window[begin : begin + BATCH]
            first = max(len(window) // 2 - begin, 0)
            context.decode(tokens, first)
            for index in range(first, min(len(tokens), len(window) - 1 - begin)):
                logits = context.logits(index).astype(np.float64)
                top = logits.max()
                yield top + np.log(np.exp(logits - top).sum()) - logits[window[begin + index + 1]]

    def tokenize(self, text):
        data = text.encode()
        room = len(data) + 8
        tokens = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), tokens, room, False, True)
        if count < 0:
            raise RequestError(f"llama_tokenize returned {count}")
        bos = llama.llama_vocab_bos(self._vocab) if llama.llama_vocab_get_add_bos(self._vocab) else None
        return {"tokens": tokens[:count], "bos": bos}


def answer(value):
    print(json.dumps(value), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--capacity", type=int, default=2112, help="tokens that the cache has room for")
    args = parser.parse_args()
    llama.llama_log_set(warn, ctypes.c_void_p(0))
    start = time.perf_counter()
    session = Session(args.model, args.threads, args.capacity)
    load_seconds = time.perf_counter() - start
    session.context.read(PROMPT)
    first_token_seconds = time.perf_counter() - start
    answer({
        "load_seconds": load_seconds,
        "first_token_seconds": first_token_seconds,
        "file_bytes": os.path.getsize(args.model),
        "system": llama.llama_print_system_info().decode().strip(" |"),
    })  # fmt: skip
    for line in sys.stdin:
        try:
            answer(session.obey(json.loads(line)))
        except (RequestError, ValueError, TypeError) as error:
            answer({"error": str(error)})


main()
