"""What matrices take in the files of models, by the headers of the files. Only the standard library is needed here."""

import json
import math
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from turns import BesideError

EMBEDDING = re.compile(r"embed_tokens|embeddings\.|lm_head|token_embd|^output\.weight")


@dataclass
class Stored:
    """Matrices of a file: weights and bytes by the name of their type."""

    weights: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)

    def add(self, kind, weights, stored):
        self.weights[kind] += weights
        self.bytes[kind] += stored

    def describe(self):
        total = self.weights.total()
        if len(self.weights) == 1:
            return next(iter(self.weights))
        return ", ".join(f"{kind} {count / total:.0%}" for kind, count in self.weights.most_common())


def bits_per_weight(*parts):
    return 8 * sum(part.bytes.total() for part in parts) / sum(part.weights.total() for part in parts)


def read_struct(file, layout):
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def safetensors_contents(directory):
    """What the blocks and the embeddings of an archive or of a dense model take."""
    blocks, embeddings = Stored(), Stored()
    paths = sorted(path for path in Path(directory).iterdir() if path.suffix in (".safetensors", ".pixel"))
    if not paths:
        raise BesideError(f"{directory} has no .safetensors or .pixel file")
    for path in paths:
        with open(path, "rb") as file:
            header = json.loads(file.read(*read_struct(file, "Q")))
        manifest = json.loads(header.pop("__metadata__", {}).get("pixel", "{}"))
        packed = manifest.get("tensors", {})
        sizes = Counter()
        for name, tensor in header.items():
            owner = name.rpartition(".")[0] if name.rpartition(".")[0] in packed else name
            sizes[owner] += tensor["data_offsets"][1] - tensor["data_offsets"][0]
        for name, size in sizes.items():
            entry = packed.get(name) or header[name]
            codec = entry.get("codec")
            if len(entry["shape"]) > 1:
                part = embeddings if EMBEDDING.search(name) else blocks
                kind = f"{codec['codec']}:{codec['bits']:g}" if codec else entry["dtype"]
                part.add(kind, math.prod(entry["shape"]), size)
    return blocks, embeddings
