#!/usr/bin/env python3
"""Times a sentence encoder's archives beside the dense model, under Burn and under onnxruntime, in turns.

    scripts/fetch-models.sh
    cargo build --release -p pixel-cli -p pixel-bench --bins
    target/release/pixel compress models/all-MiniLM-L6-v2 ARCHIVE --bits 2
    beside_onnxruntime.py --ours ARCHIVE... --text FILE [--split] [--threads 1 2] [--rounds 7] [--sentences 1000]

Each model has a process of its own: pixel-bench's program `sentences` on Flex for archives and for the dense model,
scripts/onnxruntime_worker.py for the same FP32 weights under onnxruntime, once with the operators of ONNX (`standard`)
and once with onnxruntime's own for attention, norms and GELU (`fused`): which of them is faster depends on the machine.
All obey the same requests, with the same tokens, batches and number of threads. All of them stay alive while one
computes. In each round everybody has a turn, whose order changes from round to round; a ratio is taken of two turns of
one round, and the median of these ratios is printed with their quartiles. --absolute prints the medians of sentences a
second.

A turn is all sentences, from tokens to vectors on the host; making the tokens is not in it. The sentences are the first
of the text that are not blank, one a line, as `pixel eval` reads them; with --split, lines are cut behind each full
stop, question mark and exclamation mark before a space. They are sorted by their tokens, so that a batch pads little.

A turn in which other programs take more than a tenth of the processors is repeated for up to --patience seconds, and
the least disturbed one counts; the output says what others took, and marks rows where most turns were disturbed.

Before anything is timed, the vectors of all sentences are compared: onnxruntime's have to agree with those of the dense
model under Burn (every cosine above .9999), and the cosines of the archives' are printed beside their speed.

Makes a virtual environment with onnxruntime unless --python names an interpreter that has what the worker needs. Only
the standard library is needed here.
"""

import argparse
import itertools
import math
import operator
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean, median

from stored import bits_per_weight, safetensors_contents
from turns import BesideError, Rounds, Worker, in_turns, processor, spread, table, undisturbed

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("onnxruntime==1.32.0", "onnx==1.23.2", "numpy==2.4.6", "safetensors==0.8.0")
GRAPHS = ("standard", "fused")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
LEAST_COSINE = 0.9999
MEASUREMENT = "sentences"


class Ours:
    """An archive, or the dense model, under PIXEL."""

    def __init__(self, path, name, args):
        self.path, self.name = path, name
        self.blocks, self.embeddings = safetensors_contents(path)
        self._program = args.program

    def command(self, threads):
        return [self._program, self.path], {**os.environ, "RAYON_NUM_THREADS": str(threads)}


class Theirs:
    """The dense model under onnxruntime."""

    def __init__(self, graph, args):
        self.name, self._graph = f"onnxruntime, {graph}", graph
        self._program = [args.python, str(ROOT / "scripts/onnxruntime_worker.py"), args.dense]

    def command(self, threads):
        return [*self._program, "--threads", str(threads), "--graph", self._graph], None


def say(text):
    print(f"beside_onnxruntime: {text}", file=sys.stderr, flush=True)


def prepare_python(venv):
    """An interpreter that has the packages: that of a virtual environment, which is made if it is not there."""
    python = venv / "bin/python"
    wanted = "\n".join(PACKAGES)
    stamp = venv / "packages.txt"
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        say(f"installing {', '.join(PACKAGES)} in {venv}")
        try:
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        except (subprocess.CalledProcessError, OSError) as error:
            raise BesideError(f"{error}: are Python's venv module and the package index there?") from None
        stamp.write_text(wanted, encoding="utf-8")
    return str(python)


def sentences_of(args):
    """The first sentences of the text."""
    try:
        lines = Path(args.text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BesideError(f"{args.text} cannot be read: {error}") from None
    pieces = itertools.chain.from_iterable(SENTENCE_END.split(line) for line in lines) if args.split else lines
    found = list(itertools.islice((piece.strip() for piece in pieces if piece.strip()), args.sentences))
    if len(found) < args.sentences:
        raise BesideError(f"{args.text} has {len(found)} sentences of the {args.sentences} of --sentences")
    return found


def start(models, threads):
    """A process for each model, by name; none is left behind if one of them fails."""
    workers = {}
    try:
        for model in models:
            workers[model.name] = Worker(model, threads)
    except BesideError:
        stop(workers)
        raise
    return workers


def stop(workers):
    for worker in workers.values():
        worker.__exit__()


def cosines(a, b):
    """The cosine of each pair of vectors."""

    def dot(x, y):
        return sum(map(operator.mul, x, y))

    return [dot(x, y) / math.sqrt(dot(x, x) * dot(y, y)) for x, y in zip(a, b)]


def agreement(dense, ours, theirs, texts, args):
    """The tokens of the sentences, sorted, and each model's cosines with the dense model; onnxruntime has to agree."""
    models = [dense, *ours, *theirs]
    workers = start(models, max(args.threads))
    try:
        tokens = sorted(workers[dense.name].ask(tokenize=texts, limit=args.limit)["tokens"], key=len)
        say("vectors")
        vectors = {name: worker.ask(vectors=tokens, batch=args.batch)["vectors"] for name, worker in workers.items()}
        system = workers[theirs[0].name].start["system"]
        sizes = {model.name: workers[model.name].start["file_bytes"] for model in [dense, *ours]}
    finally:
        stop(workers)
    found = {model.name: cosines(vectors[model.name], vectors[dense.name]) for model in models}
    for model in theirs:
        if not min(found[model.name]) > LEAST_COSINE:
            raise BesideError(f"{model.name}: a vector's cosine with the dense model's is {min(found[model.name])}")
    return tokens, found, sizes, system


def measure(models, threads, tokens, args):
    found, workers = Rounds(), start(models, threads)
    try:
        say(f"{threads} thread(s)")
        for number, model in in_turns(models, args.rounds + 1):
            worker = workers[model.name]
            # The first round fills the processor's caches and each program's memory.
            seconds, others = undisturbed(
                lambda: worker.turn(embed=tokens, batch=args.batch, rounds=1), args.patience if number else 0
            )
            if number > 0:
                found.add(MEASUREMENT, model.name, seconds)
                found.others.append(others)
    finally:
        stop(workers)
    return found


def model_table(dense, ours, theirs, found, sizes):
    rows = []
    for model in [dense, *ours, *theirs]:
        row = [model.name, "", "", "", ""]
        if model.name in sizes:
            bits = [f"{bits_per_weight(*parts):.2f}" for parts in ([model.blocks], [model.blocks, model.embeddings])]
            row = [model.name, model.blocks.describe(), *bits, f"{sizes[model.name] / sizes[dense.name]:.3f}"]
        rows.append([*row, f"{mean(found[model.name]):.4f}", f"{min(found[model.name]):.4f}"])
    head = ["model", "blocks", "bits", "bits with embeddings", "files ÷ dense", "cosine", "least cosine"]
    return table(head, rows)


def ratio_table(dense, ours, theirs, measured):
    rows = []
    for (threads, rounds), over in itertools.product(measured.items(), [*ours, dense]):
        # Ratios of speeds are those of seconds, the other way round.
        ratios = [spread(rounds.ratios(MEASUREMENT, under.name, over.name)) for under in [dense, *theirs]]
        ratios[0] = "1" if over is dense else ratios[0]
        rows.append([over.name, f"{threads}, disturbed" if rounds.disturbed() else str(threads), *ratios])
    return table(["", "threads", *(f"÷ {model.name}" for model in [dense, *theirs])], rows)


def report(args, dense, ours, theirs, texts, checked, measured):
    tokens, found, sizes, system = checked
    print(f"{processor()}, {os.cpu_count()} logical processors. {system}.\n")
    lengths = [len(sentence) for sentence in tokens]
    batches = [lengths[begin : begin + args.batch] for begin in range(0, len(lengths), args.batch)]
    padded = 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
    kind = "sentences, cut from lines" if args.split else "lines"
    print(
        f"The first {len(texts)} {kind} of {Path(args.text).name}: {mean(lengths):.1f} tokens on average, "
        f"at most {max(lengths)}; batches of {args.batch}, {padded:.1%} of which is padding.\n"
    )
    print(model_table(dense, ours, theirs, found, sizes))
    print("\nSentences per second, ours ÷ others (above 1: ours is faster), median (quartiles):\n")
    print(ratio_table(dense, ours, theirs, measured))
    for threads, rounds in measured.items():
        others = f"a median of {median(rounds.others):.0%}, at most {max(rounds.others):.0%}"
        print(f"\n{threads} thread(s): {args.rounds} rounds; other programs took {others} of the processors in a turn.")
    if args.absolute:
        models = [*ours, dense, *theirs]
        rows = [
            [model.name, str(threads), f"{len(texts) / median(rounds.values[MEASUREMENT][model.name]):.1f}"]
            for (threads, rounds), model in itertools.product(measured.items(), models)
        ]
        print(f"\nMedians:\n\n{table(['model', 'threads', 'sentences/s'], rows)}")


def arguments():
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    venv = Path(os.environ.get("ONNXRUNTIME_VENV", ROOT / "models/onnxruntime/.venv"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", nargs="+", required=True, metavar="DIR", help="archives")
    parser.add_argument("--dense", default=str(ROOT / "models/all-MiniLM-L6-v2"), metavar="DIR", help="the dense model")
    parser.add_argument("--text", required=True, metavar="FILE", help="one sentence a line")
    parser.add_argument("--split", action="store_true", help="lines of the text hold several sentences")
    parser.add_argument("--sentences", type=int, default=1000, help="sentences of the text (default: 1000)")
    parser.add_argument("--limit", type=int, default=256, metavar="TOKENS", help="of a sentence (default: 256)")
    parser.add_argument("--batch", type=int, default=32, help="sentences read at once (default: 32)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T", help="(default: 1 2)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each measurement (default: 7)")
    parser.add_argument("--patience", type=float, default=20, help="seconds for a turn without others (default: 20)")
    parser.add_argument("--absolute", action="store_true", help="print sentences a second as well")
    parser.add_argument("--program", default=str(target / "release/sentences"), metavar="PROGRAM")
    parser.add_argument("--python", help="one that has the packages (default: that of a virtual environment)")
    parser.add_argument("--venv", type=Path, default=venv, metavar="DIR", help="made if missing (default: %(default)s)")
    args = parser.parse_args()
    for name in ("sentences", "limit", "batch", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} has to be 1 at least")
    if min(args.threads) < 1:
        parser.error("--threads have to be 1 at least")
    needed = [
        (args.program, "cargo build --release -p pixel-bench --bin sentences"),
        (args.dense, "scripts/fetch-models.sh"),
        (args.text, "the text of --text"),
        *((path, "an archive, by `pixel compress`") for path in args.ours),
        *([(args.python, "the interpreter of --python")] if args.python else []),
    ]
    for path, remedy in needed:
        if not Path(path).exists():
            parser.error(f"{path} is missing: {remedy}")
    return args


def main():
    args = arguments()
    texts = sentences_of(args)
    args.python = args.python or prepare_python(args.venv)
    dense = Ours(args.dense, "Burn, dense", args)
    ours = [Ours(path, Path(path).resolve().name, args) for path in args.ours]
    theirs = [Theirs(graph, args) for graph in GRAPHS]
    models = [*ours, dense, *theirs]
    if len({model.name for model in models}) < len(models):
        raise BesideError("two models have the same name")
    checked = agreement(dense, ours, theirs, texts, args)
    measured = {threads: measure(models, threads, checked[0], args) for threads in args.threads}
    report(args, dense, ours, theirs, texts, checked, measured)


try:
    main()
except BesideError as error:
    sys.exit(f"beside_onnxruntime: error: {error}")
