#!/usr/bin/env python3
"""Times PIXEL's archives beside llama.cpp's GGUF files of the same model, in turns, and prints ratios as Markdown.

    scripts/fetch-models.sh && scripts/llama-cpp.sh
    cargo build --release -p pixel-bench --bin generation
    beside_llama_cpp.py --ours ARCHIVE... --theirs MODEL.gguf... [--text FILE] [--threads 1 2] [--rounds 7]

Each model has a process of its own: pixel-bench's program `generation` or scripts/llama_cpp_worker.py. They obey the
same requests, read the same tokens, and use the same number of threads. All of them stay alive while one computes. In
each round everybody has a turn, whose order changes from round to round; a ratio is taken of two turns of one round,
and the median of these ratios is printed with their quartiles. Machines are shared, so a time would mean little;
--absolute prints the medians of the times for those who have a machine to themselves.

A turn in which other programs take more than a tenth of the processors is repeated for up to --patience seconds, and
the least disturbed one counts; the output says what others took, and marks rows where most turns were disturbed. With
two threads that matters more than anything else: llama.cpp's threads wait for one another at every step, and where one
has lost its core both stand still.

Measured are
    prefill     a prompt of 128 and of 512 tokens read in one go, with the logits of its last token
    decode      64 tokens one by one, each with its logits, after 0, 512 and 2048 others; nothing is sampled
    load        from the call that loads to a model that is ready, its file in the system's cache
    first       from the same call to the logits after a prompt of 16 tokens
    memory      the most resident after loading, 512 tokens and 16 more, beyond what the process had before loading,
                pages of mapped files included; both have room for 2112 tokens
    file        weights, configuration and vocabulary
    perplexity  with --text: exp of the mean negative log likelihood of the second halves of windows of 512 tokens, as
                llama.cpp's `perplexity` computes it; PIXEL's tokenizer makes the windows of all, and
                the script says so if llama.cpp's makes other tokens

Bits per weight count everything stored for matrices, by the headers of the files. llama.cpp's k-quants need rows in
whole blocks of 256 weights; others are stored as another type, so the types that a file really has are printed.
Only the standard library is needed here.
"""

import argparse
import itertools
import math
import os
import struct
import sys
from pathlib import Path
from statistics import median

from stored import EMBEDDING, Stored, bits_per_weight, read_struct, safetensors_contents
from turns import BesideError, Rounds, Worker, in_turns, processor, spread, table, undisturbed

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 512
LAUNCHES = 5

# `enum ggml_type`, which GGUF files number.
GGML_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16",
}  # fmt: skip
# GGUF's value types that have a fixed size, as `struct` spells them; 8 is a string, 9 an array.
GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_string(file):
    (length,) = read_struct(file, "Q")
    return file.read(length).decode(errors="replace")


def skip_value(file, kind):
    if kind == 8:
        read_string(file)
    elif kind == 9:
        element, count = read_struct(file, "IQ")
        if element in GGUF_SCALARS:
            file.seek(count * struct.calcsize(f"<{GGUF_SCALARS[element]}"), os.SEEK_CUR)
        else:
            for _ in range(count):
                skip_value(file, element)
    else:
        read_struct(file, GGUF_SCALARS[kind])


def gguf_contents(path):
    """What the blocks and the embeddings of a GGUF file take."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise BesideError(f"{path} is no GGUF file")
        _version, tensors, pairs = read_struct(file, "IQQ")
        for _ in range(pairs):
            read_string(file)
            skip_value(file, *read_struct(file, "I"))
        table = []
        for _ in range(tensors):
            name, (dims,) = read_string(file), read_struct(file, "I")
            table.append((name, read_struct(file, f"{dims}Q"), *read_struct(file, "IQ")))
        # Data begins at the next multiple of 32, the alignment of every file that names no other.
        end = os.path.getsize(path) - -(-file.tell() // 32) * 32
    table.sort(key=lambda tensor: tensor[3])
    blocks, embeddings = Stored(), Stored()
    for (name, shape, kind, offset), (*_, following) in itertools.pairwise([*table, (None, None, None, end)]):
        if len(shape) > 1:
            part = embeddings if EMBEDDING.search(name) else blocks
            part.add(GGML_TYPES.get(kind, f"type {kind}"), math.prod(shape), following - offset)
    return blocks, embeddings


class Ours:
    """An archive, or a dense model, under PIXEL."""

    def __init__(self, path, args):
        self.path, self.name = path, Path(path).resolve().name
        self.blocks, self.embeddings = safetensors_contents(path)
        self._program = args.generation

    def command(self, threads):
        return [self._program, self.path], {**os.environ, "RAYON_NUM_THREADS": str(threads)}


class Theirs:
    """A GGUF file under llama.cpp."""

    def __init__(self, path, args):
        self.path, self.name = path, Path(path).stem
        self.blocks, self.embeddings = gguf_contents(path)
        self._program = [args.python, str(ROOT / "scripts/llama_cpp_worker.py")]

    def command(self, threads):
        return [*self._program, self.path, "--threads", str(threads)], None


def say(text):
    print(f"beside_llama_cpp: {text}", file=sys.stderr, flush=True)


def start_once(model, threads):
    """The first line of a new process with its peak of memory, and the processors' seconds that it took."""
    with Worker(model, threads) as worker:
        worker.ask(prefill=512, rounds=1)
        worker.ask(decode=16, context=512, rounds=1)
        return {**worker.start, **worker.ask(memory=True)}, worker.total_seconds()


def measure_starts(models, threads, launches, patience, found):
    """Loading, the first token, and memory, each time in a new process; the first launch fills the system's cache."""
    for number, model in in_turns(models, launches + 1):
        start, _others = undisturbed(lambda: start_once(model, threads), patience if number else 0)
        found.values.setdefault("file", {})[model.name] = [start["file_bytes"]]
        if number > 0:
            found.add("load", model.name, start["load_seconds"])
            found.add("first", model.name, start["first_token_seconds"])
            if start["peak_bytes"] is not None:
                found.add("memory", model.name, start["peak_bytes"])


def requests(quick):
    """The requests that are timed, by name, with the tokens of each; short ones are repeated within a turn."""
    timed = {
        "prefill 128": (128, {"prefill": 128, "rounds": 3}),
        "prefill 512": (512, {"prefill": 512, "rounds": 1}),
        "decode at 0": (64, {"decode": 64, "context": 0, "rounds": 1}),
        "decode at 512": (64, {"decode": 64, "context": 512, "rounds": 1}),
        "decode at 2048": (64, {"decode": 64, "context": 2048, "rounds": 1}),
    }
    return {name: timed[name] for name in ("prefill 128", "decode at 0", "decode at 512")} if quick else timed


def measure_speeds(models, threads, rounds, patience, timed, found):
    workers = {model.name: Worker(model, threads) for model in models}
    try:
        for name, (_tokens, request) in timed.items():
            say(f"{name}, {threads} thread(s)")
            for number, model in in_turns(models, rounds + 1):
                worker = workers[model.name]
                # The first round fills caches of keys and values, and the processor's.
                seconds, others = undisturbed(lambda: worker.turn(**request), patience if number else 0)
                if number > 0:
                    found.add(name, model.name, seconds)
                    found.others.append(others)
    finally:
        for worker in workers.values():
            worker.__exit__()


def tokens_of(text, model, threads):
    """The tokens of a text, and the one that begins a text where the model wants one."""
    with Worker(model, threads) as worker:
        answer = worker.ask(tokenize=text)
    return answer["tokens"], answer["bos"]


def windows_of(path, ours, theirs, threads, count):
    """The first windows of a text by our tokenizer, which is compared with theirs."""
    text = Path(path).read_text(encoding="utf-8")
    tokens, bos = tokens_of(text, ours, threads)
    if (tokens, bos) != tokens_of(text, theirs, threads):
        say(f"{ours.name} and {theirs.name} make other tokens of {path}; those of the former are scored")
    starts = range(0, len(tokens) - WINDOW + 1, WINDOW)[:count]
    if not starts:
        raise BesideError(f"{path} has {len(tokens)} tokens, a window {WINDOW}")
    windows = [tokens[start : start + WINDOW] for start in starts]
    return [[bos, *window[1:]] for window in windows] if bos is not None else windows


def perplexities(models, threads, windows):
    found = {}
    for model in models:
        say(f"perplexity of {model.name}")
        with Worker(model, threads) as worker:
            answers = [worker.ask(score=[window]) for window in windows]
        total = sum(answer["negative_log_likelihood"] * answer["tokens"] for answer in answers)
        found[model.name] = math.exp(total / sum(answer["tokens"] for answer in answers))
    return found


def shown_perplexity(perplexity, model):
    return f"{perplexity[model.name]:.2f}" if perplexity else ""


def model_table(models, perplexity):
    rows = []
    for model in models:
        blocks, embeddings = model.blocks, model.embeddings
        rows.append([
            model.name, blocks.describe(), embeddings.describe(), f"{bits_per_weight(blocks):.2f}",
            f"{bits_per_weight(blocks, embeddings):.2f}", shown_perplexity(perplexity, model),
        ])  # fmt: skip
    return table(["model", "blocks", "embedding", "bits", "bits with embedding", "perplexity"], rows)


def ratio_table(ours, theirs, perplexity, found, measurements, inverse):
    """A row for each pair and number of threads; `inverse` turns ratios of seconds into ratios of speeds."""
    rows = []
    for (threads, rounds), a, b in itertools.product(found.items(), ours, theirs):
        over, under = (b, a) if inverse else (a, b)
        ratios = [spread(rounds.ratios(name, over.name, under.name)) for name in measurements if name in rounds.values]
        bits = [f"{bits_per_weight(model.blocks):.2f}" for model in (a, b)]
        pair = [f"{a.name} ÷ {b.name}", ", ".join(bits)]
        if perplexity:
            pair.append(", ".join(shown_perplexity(perplexity, model) for model in (a, b)))
        rows.append([*pair, f"{threads}, disturbed" if rounds.disturbed() else str(threads), *ratios])
    measured = [name for name in measurements if all(name in rounds.values for rounds in found.values())]
    return table(["", "bits", *(["perplexity"] if perplexity else []), "threads", *measured], rows)


def absolute_table(models, timed, found):
    rows = []
    for (threads, rounds), model in itertools.product(found.items(), models):
        rates = [f"{tokens / median(rounds.values[name][model.name]):.1f}" for name, (tokens, _) in timed.items()]
        seconds = [f"{median(rounds.values[name][model.name]):.3f}" for name in ("load", "first")]
        rounds_of_bytes = [rounds.values[name][model.name] for name in ("memory", "file") if name in rounds.values]
        rows.append([model.name, str(threads), *rates, *seconds, *(f"{median(b) / 1e6:.1f}" for b in rounds_of_bytes)])
    units = [*(f"{name}, tokens/s" for name in timed), "load, s", "first, s", "memory, MB", "file, MB"]
    return table(["model", "threads", *units], rows)


def report(args, ours, theirs, perplexity, timed, found, system):
    print(f"{processor()}, {os.cpu_count()} logical processors. llama.cpp: {system}.\n")
    print(model_table([*ours, *theirs], perplexity))
    print("\nTokens per second, ours ÷ theirs (above 1: PIXEL is faster), median (quartiles):\n")
    print(ratio_table(ours, theirs, perplexity, found, timed, inverse=True))
    print("\nSeconds and bytes, ours ÷ theirs (below 1: PIXEL takes less):\n")
    print(ratio_table(ours, theirs, perplexity, found, ("load", "first", "memory", "file"), inverse=False))
    for threads, rounds in found.items():
        others = f"a median of {median(rounds.others):.0%}, at most {max(rounds.others):.0%}"
        print(f"\n{threads} thread(s): {args.rounds} rounds; other programs took {others} of the processors in a turn.")
    if args.absolute:
        print(f"\nMedians:\n\n{absolute_table([*ours, *theirs], timed, found)}")


def arguments():
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    venv = Path(os.environ.get("LLAMA_CPP_VENV", ROOT / "models/llama-cpp/.venv"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", nargs="+", required=True, metavar="DIR", help="archives, or dense models")
    parser.add_argument("--theirs", nargs="+", required=True, metavar="GGUF")
    parser.add_argument("--text", metavar="FILE", help="a text, for perplexities")
    parser.add_argument("--windows", type=int, default=40, help="windows of the text that are scored (default: 40)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T", help="(default: 1 2)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each measurement (default: 7)")
    parser.add_argument("--patience", type=float, default=20, help="seconds for a turn without others (default: 20)")
    parser.add_argument("--quick", action="store_true", help="two rounds of three measurements, 4 windows")
    parser.add_argument("--absolute", action="store_true", help="print times and bytes as well")
    parser.add_argument("--generation", default=str(target / "release/generation"), metavar="PROGRAM")
    parser.add_argument("--python", default=str(venv / "bin/python"), help="one that has llama-cpp-python")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.windows = 2, 4
    needed = [
        (args.generation, "cargo build --release -p pixel-bench --bin generation"),
        (args.python, "scripts/llama-cpp.sh, or LLAMA_CPP_VENV"),
        *((path, "an archive, by `pixel compress`") for path in args.ours),
        *((path, "scripts/llama-cpp.sh makes some") for path in args.theirs),
        *([(args.text, "the text of --text")] if args.text else []),
    ]
    for path, remedy in needed:
        if not Path(path).exists():
            parser.error(f"{path} is missing: {remedy}")
    return args


def main():
    args = arguments()
    ours = [Ours(path, args) for path in args.ours]
    theirs = [Theirs(path, args) for path in args.theirs]
    models, timed, found = [*ours, *theirs], requests(args.quick), {}
    if len({model.name for model in models}) < len(models):
        raise BesideError("two models have the same name")
    for threads in args.threads:
        found[threads] = Rounds()
        say(f"starts, {threads} thread(s)")
        measure_starts(models, threads, min(args.rounds, LAUNCHES), args.patience, found[threads])
        measure_speeds(models, threads, args.rounds, args.patience, timed, found[threads])
    with Worker(theirs[0], 1) as worker:
        system = worker.start["system"]
    perplexity = None
    if args.text:
        threads = max(args.threads)
        windows = windows_of(args.text, ours[0], theirs[0], threads, args.windows)
        perplexity = perplexities(models, threads, windows)
    report(args, ours, theirs, perplexity, timed, found, system)


try:
    main()
except BesideError as error:
    sys.exit(f"beside_llama_cpp: error: {error}")
