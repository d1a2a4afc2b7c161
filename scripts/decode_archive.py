#!/usr/bin/env python3
"""A second decoder of PIXEL archives, written from `docs/format.md` alone.

    python3 decode_archive.py ARCHIVE.pixel DENSE.safetensors

decodes every packed weight of one shard and compares it to the file that `pixel decompress` wrote from that shard. It
prints a line per codec and exits 1 if anything differs.

It shares no code with the Rust decoder; the one thing it takes from there is what the page names as data, the tables
of the additive and the lapped codec. It needs numpy; hashes are checked where the package `blake3` is installed. Section numbers
below are those of the page.
"""

import json
import math
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

try:
    from blake3 import blake3
except ImportError:
    blake3 = None

CODECS = Path(__file__).resolve().parent.parent / "pixel-core/src/codec"

# What rounding to the type of the dense file may change, relative to the row, and the type's smallest step.
TOLERANCE = {"F64": 1e-5, "F32": 1e-5, "F16": 1e-3, "BF16": 1e-2}
SMALLEST = {"F64": 0.0, "F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}


class Refused(Exception):
    """The file is not an archive as the page defines it."""


def require(condition, message):
    if not condition:
        raise Refused(message)


# 1. Files


class Tensor(NamedTuple):
    """A tensor of a safetensors file: its type's name, its shape and its bytes."""

    dtype: str
    shape: tuple
    data: bytes

    def values(self):
        """The numbers. Floats come as float64 and BF16 is widened by hand, for numpy has no such type."""
        if self.dtype == "BF16":
            wide = np.frombuffer(self.data, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).astype(np.float64).reshape(self.shape)
        kinds = {"U32": np.uint32, "I8": np.int8, "F64": np.float64, "F32": np.float64, "F16": np.float64}
        stored = {"U32": "<u4", "I8": "i1", "F64": "<f8", "F32": "<f4", "F16": "<f2"}[self.dtype]
        return np.frombuffer(self.data, stored).astype(kinds[self.dtype]).reshape(self.shape)


def read_safetensors(path):
    """The tensors of a file by name, and its `__metadata__`."""
    file = Path(path).read_bytes()
    header_end = 8 + int.from_bytes(file[:8], "little")
    require(8 <= header_end <= len(file), f"{path}: the header ends beyond the file")
    header = json.loads(file[8:header_end])
    metadata = header.pop("__metadata__", {})
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        require(begin == end <= stop, f"{path}: gap or overlap at {name}")
        tensors[name] = Tensor(entry["dtype"], tuple(entry["shape"]), file[header_end + begin : header_end + stop])
        end = stop
    require(header_end + end == len(file), f"{path}: the data do not end with the file")
    return tensors, metadata


# 2. The manifest


STREAMS = {
    "trellis": ("codes", "scales"),
    "additive": ("codes", "scales"),
    "lapped": ("codes", "scales"),
    "matching": ("codes", "patterns", "scales"),
    "uniform": ("codes", "scales", "zeros"),
}
PROTECTED = ("protected", "protected_values")  # after those of the codec
LOW_RANK = {  # by storage; after those of the protected columns
    "int8": ("low_rank_down", "low_rank_down_scales", "low_rank_up", "low_rank_up_scales"),
    "f16": ("low_rank_down", "low_rank_up"),
}


def check_hash(data, expected, what):
    if blake3 is not None:
        require(blake3(data).hexdigest() == expected, f"{what}: wrong hash")


def read_manifest(metadata):
    require("pixel" in metadata, "no manifest: not an archive")
    manifest = json.loads(metadata["pixel"])
    require(manifest["version"].split(".")[0] == "1", f"version {manifest['version']}: this program reads 1")
    check_hash(metadata["pixel"].encode(), metadata["pixel_blake3"], "manifest")
    return manifest


class Packed:
    """A packed weight: its entry of the manifest and the streams that belong to it."""

    def __init__(self, name, entry, stored):
        self.name = name
        self.m, self.n = entry["shape"]
        self.codec = entry["codec"]["codec"]
        require(self.codec in STREAMS, f"{name}: unknown codec {self.codec}")
        self.bits = entry["codec"]["bits"]
        self.options = entry["codec"].get("options", {})
        self.rotation = entry.get("rotation")
        self.exponent = entry["exponent"]
        self.protected = entry.get("protected", 0)  # since 1.1
        require(0 <= self.protected < self.n, f"{name}: {self.protected} protected columns of {self.n}")
        names = STREAMS[self.codec] + (PROTECTED if self.protected else ())
        self.low_rank = entry.get("low_rank")  # since 1.2
        if self.low_rank is not None:
            rank, storage = self.low_rank["rank"], self.low_rank["storage"]
            require(1 <= rank <= min(self.m, self.n), f"{name}: rank {rank} of {self.m} × {self.n}")
            require(storage in LOW_RANK, f"{name}: unknown storage {storage}")
            names += LOW_RANK[storage]
        candidates = {stream: f"{name}.{stream}" for stream in names}
        self.streams = {stream: stored[full] for stream, full in candidates.items() if full in stored}
        self.used = set()
        check_hash(b"".join(tensor.data for tensor in self.streams.values()), entry["stored_blake3"], name)

    def option(self, name, default):
        return self.options.get(name, default)

    def stream(self, name, dtype, *shape):
        """The values of a stream, which must have this type and shape."""
        require(name in self.streams, f"{self.name}.{name} is missing")
        tensor = self.streams[name]
        found, expected = (tensor.dtype, tensor.shape), (dtype, shape)
        require(found == expected, f"{self.name}.{name} is {found} and should be {expected}")
        self.used.add(name)
        values = tensor.values()
        require(np.isfinite(values).all(), f"{self.name}.{name} holds numbers that are not finite")
        return values


# 3. From streams to the weight


def decode(weight):
    """The dense weight as float64 [m, n]."""
    decoded = DECODERS[weight.codec](weight)
    if weight.codec != "uniform":
        decoded = weight.stream("scales", "F16", weight.m)[:, None] * decoded
    if weight.low_rank is not None:
        decoded = decoded + factor(weight, "low_rank_up", weight.m).T @ factor(weight, "low_rank_down", weight.n)
    if weight.rotation is not None:
        decoded = unrotate(decoded, int(weight.rotation, 16))
    if weight.protected:
        columns = weight.stream("protected", "U32", weight.protected)
        ascend = (columns[1:] > columns[:-1]).all() and columns[-1] < weight.n
        require(ascend, f"{weight.name}: protected columns out of order or out of range")
        decoded[:, columns] = weight.stream("protected_values", "F16", weight.m, weight.protected)
    require(weight.used == set(weight.streams), f"{weight.name}: has a stream that its codec does not use")
    return np.ldexp(decoded, weight.exponent)


def factor(weight, name, length):
    """A factor of the low-rank part as it is stored, one vector of this length a row: [rank, length]."""
    rank = weight.low_rank["rank"]
    if weight.low_rank["storage"] == "f16":
        return weight.stream(name, "F16", rank, length)
    scales = weight.stream(f"{name}_scales", "F16", rank, -(-length // 128))
    return weight.stream(name, "I8", rank, length) * scales[:, np.arange(length) // 128]


# 4. The rotation


def unrotate(rows, seed):
    """`rows` times the transpose of Q.

    Without its signs Q is the Kronecker product of the Hartley matrix over `a` and the Hadamard matrix over `b`, so a
    row, taken as a matrix indexed by (a, b), is multiplied by the one from the left and the other from the right.
    """
    m, n = rows.shape
    power = n & -n  # 2^p
    odd = n // power  # m'
    angle = 2 * np.pi * (np.outer(np.arange(odd), np.arange(odd)) % odd) / odd
    hartley = np.cos(angle) + np.sin(angle)
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    mixed = hartley @ (rows.reshape(m, odd, power) @ hadamard)
    return mixed.reshape(m, n) * signs(n, seed) / np.sqrt(n)


def signs(n, seed):
    mask = 2**64 - 1
    result = np.empty(n)
    for k in range(-(-n // 64)):
        z = (seed + (k + 1) * 0x9E3779B97F4A7C15) & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        z ^= z >> 31
        for i in range(64 * k, min(64 * k + 64, n)):
            result[i] = -1.0 if z >> i % 64 & 1 else 1.0
    return result


# 5. Codecs


def bit_fields(words, offsets, width):
    """For each run of words (last axis) the bit fields of this width at these bits; width ≤ 32."""
    offsets = np.asarray(offsets, np.int64)
    words = np.concatenate([words, np.zeros_like(words[..., :1])], axis=-1).astype(np.uint64)
    pair = words[..., offsets // 32] | words[..., offsets // 32 + 1] << np.uint64(32)
    return (pair >> (offsets % 32).astype(np.uint64) & np.uint64((1 << width) - 1)).astype(np.int64)


def check_padding(weight, words, used):
    """Bits of each run from bit `used` on must be zero."""
    rest = 32 * words.shape[-1] - used
    require(0 <= rest < 32, f"{weight.name}: padding of {rest} bits")
    require(not rest or not (words[..., -1] >> np.uint32(32 - rest)).any(), f"{weight.name}: padding bits are set")


def sum_of_fields(words, width, first, count):
    """The sum of `count` bit fields of `width` bits each, from bit `first` of every word."""
    mask = np.uint32((1 << width) - 1)
    return sum((words >> np.uint32(first + i * width) & mask).astype(np.int64) for i in range(count))


def untile(tiles, rows, cols, m, n):
    """A matrix from tiles [tile row, tile column, rows·cols]; what lies beyond the edges is dropped."""
    down, across = tiles.shape[:2]
    matrix = tiles.reshape(down, across, rows, cols).transpose(0, 2, 1, 3)
    return matrix.reshape(down * rows, across * cols)[:m, :n]


# 5.1 trellis


def trellis(weight):
    rate, window = weight.bits, weight.option("window", 16)
    require(rate in (1, 1.5, 2, 2.5, 3, 4) and 8 <= window <= 16, f"{weight.name}: unknown rate or window")
    v = 2 if rate < 3 else 1  # weights a step
    k = int(v * rate)  # bits a step
    steps = 256 // v

    up = lambda x: 1 << (x - 1).bit_length()
    rows = min(32, up(weight.m))
    cols = min(256 // rows, up(weight.n))
    rows = 256 // cols
    words = weight.stream("codes", "U32", -(-weight.m // rows), -(-weight.n // cols), int(8 * rate))

    # A window that starts in the last word goes on in the first: the tile's bits are a ring of whole words.
    ring = np.concatenate([words, words[..., :1]], axis=-1)
    state = bit_fields(ring, (steps - 1 - np.arange(steps)) * k, window).astype(np.uint32)
    if v == 2:
        x = state * np.uint32(0x2DBA0BD5)
        x ^= x >> np.uint32(16)
        pair = np.stack([sum_of_fields(x, 4, 0, 4), sum_of_fields(x, 4, 16, 4)], axis=-1)
        tiles = (pair - 30) * 0.10846523
    else:
        x = state * np.uint32(0xCB3AAE95)
        x ^= x >> np.uint32(16)
        tiles = (sum_of_fields(x, 8, 0, 4) - 510) * 0.006765875
    return untile(tiles, rows, cols, weight.m, weight.n)


# 5.2 additive


@lru_cache
def dictionary(codec, m, span):
    """The patterns of a codec with `m` nibbles for 8 weights: the innermost lists of `span` integers in its source."""
    source = (CODECS / codec / f"dictionary/m{m}.rs").read_text()
    patterns = re.findall(r"\[\s*((?:-?\d+\s*,\s*){%d}-?\d+)\s*,?\s*\]" % (span - 1), source)
    return np.array([[int(x) for x in pattern.split(",")] for pattern in patterns])


def additive(weight):
    require(weight.bits in (1, 1.5, 2, 2.5, 3, 4), f"{weight.name}: unknown rate")
    count = int(2 * weight.bits)  # M
    groups = -(-weight.n // 8)
    words = weight.stream("codes", "U32", weight.m, -(-groups * 4 * count // 32))
    check_padding(weight, words, groups * 4 * count)
    total = np.zeros((weight.m, groups, 8), np.int64)
    patterns = dictionary("additive", count, 8)
    require(len(patterns) == 16 * count, f"{len(patterns)} additive patterns at {weight.bits} bits")
    for sub, table in enumerate(patterns.reshape(count, 16, 8)):
        total += table[bit_fields(words, (np.arange(groups) * count + sub) * 4, 4)]
    return total.reshape(weight.m, groups * 8)[:, : weight.n] / 64


# 5.3 matching


def matching_tile(m, n, tile):
    """Rows and columns of a tile."""
    if tile > 0:
        rows = min(m, tile) if n >= tile else min(m, tile * tile // n)
        cols = min(n, tile) if m >= tile else min(n, tile * tile // m)
        return rows, cols
    while m * n > 1 << 18:
        if n >= m:
            n = -(-n // 2)
        else:
            m = -(-m // 2)
    return m, n


def matching(weight):
    require(weight.bits in (0.5, 1, 1.5, 2, 2.5, 3, 4), f"{weight.name}: unknown rate")
    tile = weight.option("tile", 8)
    rows, cols = matching_tile(weight.m, weight.n, tile)
    down, across = -(-weight.m // rows), -(-weight.n // cols)
    length = rows * cols

    # Widths.
    budget = math.floor(weight.bits * length)
    scale_bits = weight.option("scale_bits", 0) or (5 if tile == 0 else 1)
    index_bits = min(
        weight.option("patterns", 9),
        max(2, (1 << 24) // length).bit_length() - 1,
        max(1, budget - 4 - scale_bits),
    )
    term_bits = index_bits + scale_bits
    terms = max(1, max(0, budget - 4) // term_bits)
    if tile == 0:
        terms = min(terms, 256)
    gain_bits = min(8, max(4, budget - terms * term_bits))
    parts = min(terms, max(1, (1 << 24) // (length << index_bits)))
    learned = min(weight.option("learned", 0), 1 << (index_bits - 1))

    # Streams.
    tile_bits = gain_bits + terms * term_bits
    words = weight.stream("codes", "U32", down, -(-across * tile_bits // 32))
    check_padding(weight, words, across * tile_bits)
    starts = np.arange(across) * tile_bits
    stored = np.zeros((0, length))
    if learned > 0:
        stored = weight.stream("patterns", "F16", learned, length) / np.sqrt(length)

    # The sum. Terms of the same part share a table.
    gain = bit_fields(words, starts, gain_bits)
    gain = math.sqrt(length) / 16 * np.exp2(8 * gain / 2**gain_bits)
    b = index_bits + 1
    fall = max(0.25, (length - 0.28 * b) / (length + 0.28 * b))
    fixed = np.concatenate([np.zeros((1, length)), base_patterns(rows, cols, (1 << index_bits) // 4), stored])
    tiles = np.zeros((down, across, length))
    for part in range(parts):
        computed = computed_patterns(part, np.arange(len(fixed), 1 << index_bits), length)
        table = np.concatenate([fixed, computed])
        for k in range(part, terms, parts):
            field = bit_fields(words, starts + gain_bits + k * term_bits, term_bits)
            index = field & ((1 << index_bits) - 1)
            sign = 1 - 2 * (field >> index_bits & 1)
            h = field >> (index_bits + 1)
            factor = sign * gain * fall**k * np.exp2(-h.astype(np.float64))
            for row in range(down):  # one tile row at a time bounds the memory
                tiles[row] += factor[row, :, None] * table[index[row]]
    return untile(tiles, rows, cols, weight.m, weight.n)


def base_patterns(rows, cols, limit):
    """The base patterns of a tile, at most `limit`, as unit vectors [B, rows·cols]."""
    r, c = np.arange(rows)[:, None], np.arange(cols)[None, :]
    candidates = [c == r, c == r + 1, c == r - 1]
    for f in (1, 2, 4):
        angle = 2 * np.pi * f * (r / rows + c / cols)
        candidates += [np.sin(angle), np.cos(angle)]
    for part in (2, 4):
        height, width = -(-rows // part), -(-cols // part)
        upper, lower = r < height, r >= rows - height
        left, right = c < width, c >= cols - width
        candidates += [upper & left, upper & right, lower & left, lower & right]
    candidates.append((r >= 0) & (c >= 0))

    patterns = np.zeros((0, rows * cols))
    for candidate in candidates:
        pattern = candidate.astype(np.float64).ravel()
        norm = np.linalg.norm(pattern)
        # A sine whose angles are all multiples of π is zero but for the rounding.
        if len(patterns) < limit and norm > 1e-6 and (np.abs(patterns @ pattern) <= 0.98 * norm).all():
            patterns = np.concatenate([patterns, pattern[None] / norm])
    return patterns


def mix(x):
    x = x ^ x >> np.uint32(16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ x >> np.uint32(15)
    x = x * np.uint32(0x846CA68B)
    return x ^ x >> np.uint32(16)


def computed_patterns(part, indices, length):
    """The computed patterns of these indices for a part, as unit vectors [indices, length]."""
    seed = mix((65536 * part + indices).astype(np.uint32))
    steps = np.arange(length, dtype=np.uint32) * np.uint32(0x9E3779B9)
    patterns = np.empty((len(indices), length))
    for pattern, start in zip(patterns, seed):
        pattern[:] = sum_of_fields(mix(start + steps), 4, 0, 4) - 30
        if not pattern.any():
            pattern[0] = 1
        pattern /= np.linalg.norm(pattern)
    return patterns


# 5.4 uniform


def uniform(weight):
    bits, group = weight.bits, weight.option("group", 64)
    require(bits in (2, 3, 4, 5, 6, 8) and 8 <= group <= 1024, f"{weight.name}: unknown rate or group")
    bits = int(bits)
    m, n = weight.m, weight.n
    groups = -(-n // group)
    words = weight.stream("codes", "U32", m, -(-n * bits // 32))
    check_padding(weight, words, n * bits)
    scales = weight.stream("scales", "F16", m, groups)
    zero_words = weight.stream("zeros", "U32", -(-m * groups * bits // 32))
    check_padding(weight, zero_words, m * groups * bits)
    codes = bit_fields(words, np.arange(n) * bits, bits)
    zeros = bit_fields(zero_words, np.arange(m * groups) * bits, bits).reshape(m, groups)
    column_group = np.arange(n) // group
    return scales[:, column_group] * (codes - zeros[:, column_group])


# 5.5 lapped


SPANS = {1: 32, 1.5: 24, 2: 16, 2.5: 16, 3: 16, 4: 8}


def lapped(weight):
    require(weight.bits in SPANS, f"{weight.name}: unknown rate")
    count, span = int(2 * weight.bits), SPANS[weight.bits]  # M, S
    period = count // math.gcd(count, 8)  # P
    halves = dictionary("lapped", count, span)
    require(len(halves) == 8 * period, f"{len(halves)} lapped patterns at {weight.bits} bits")
    halves = halves.reshape(period, 8, span)
    patterns = np.concatenate([halves, -halves], axis=1)
    nibbles = count * -(-weight.n // 8)  # T
    words = weight.stream("codes", "U32", weight.m, -(-nibbles * 4 // 32))
    check_padding(weight, words, nibbles * 4)
    codes = bit_fields(words, np.arange(nibbles) * 4, 4)
    total = np.zeros((weight.m, 8 * nibbles // count + span), np.int64)
    for t in range(nibbles):
        start = 8 * t // count
        total[:, start : start + span] += patterns[t % period][codes[:, t]]
    return total[:, : weight.n] / 64


DECODERS = {"trellis": trellis, "additive": additive, "matching": matching, "uniform": uniform, "lapped": lapped}


# The comparison


def magnitude(weight):
    """The norm each row would have if nothing in it cancelled.

    That is: if its decoded weights had variance 1, as the codecs with row scales aim for, and the vectors of its
    low-rank part were orthogonal to them and to each other.
    """
    squares = np.zeros(weight.m)
    if weight.codec != "uniform":
        squares += weight.n * weight.stream("scales", "F16", weight.m) ** 2
    if weight.low_rank is not None:
        up, down = factor(weight, "low_rank_up", weight.m), factor(weight, "low_rank_down", weight.n)
        squares += (up**2).T @ (down**2).sum(axis=1)
    return np.ldexp(np.sqrt(squares), weight.exponent)[:, None]


def difference(weight, dense):
    """The largest difference of a number, relative to its row; what the dense type cannot express is forgiven.

    A row counts as its norm, or as its magnitude if that is larger: the terms of `matching` can cancel, and so can
    codes and low-rank part, and then what is left of a short row is mostly the rounding of the terms.
    """
    ours, theirs = decode(weight), dense.values()
    if ours.shape != theirs.shape:
        return math.inf
    excess = np.maximum(np.abs(ours - theirs) - SMALLEST[dense.dtype], 0)
    norm = np.maximum(np.linalg.norm(theirs, axis=-1, keepdims=True), magnitude(weight))
    relative = np.divide(excess, norm, out=np.where(excess == 0, 0.0, math.inf), where=norm > 0)
    return float(relative.max(initial=0.0))


def same(kept, dense):
    """Whether a kept tensor is in the dense file: the same bytes, or nearly the same floats of another type."""
    if kept.dtype == dense.dtype:
        return kept == dense
    if kept.dtype not in TOLERANCE or dense.dtype not in TOLERANCE or kept.shape != dense.shape:
        return False
    ours, theirs = kept.values(), dense.values()
    step = SMALLEST[dense.dtype]
    return bool((np.abs(ours - theirs) <= TOLERANCE[dense.dtype] * np.abs(ours) + step).all())


def main(archive_path, dense_path):
    stored, metadata = read_safetensors(archive_path)
    dense, _ = read_safetensors(dense_path)
    manifest = read_manifest(metadata)
    if blake3 is None:
        print("hashes not checked: the package blake3 is not installed")

    packed = {name: Packed(name, entry, stored) for name, entry in manifest["tensors"].items()}
    kept = manifest["kept"]
    accounted = list(kept) + [f"{name}.{stream}" for name, weight in packed.items() for stream in weight.streams]
    require(sorted(accounted) == sorted(stored), "the manifest and the stored tensors disagree")
    require(sorted([*packed, *kept]) == sorted(dense), "the archive and the dense file hold different tensors")

    failed = False
    worst = {}  # codec: (tensors, largest relative difference)
    for name, weight in packed.items():
        error = difference(weight, dense[name])
        if not error <= TOLERANCE[dense[name].dtype]:
            failed = True
            print(f"{name}: {weight.codec} at {weight.bits} bits, {weight.m} × {weight.n}: differs by {error:.1e}")
        count, largest = worst.get(weight.codec, (0, 0.0))
        worst[weight.codec] = (count + 1, max(largest, error))
    for name, expected in kept.items():
        check_hash(stored[name].data, expected, name)
        if not same(stored[name], dense[name]):
            failed = True
            print(f"{name}: kept, and differs")

    for codec, (count, largest) in sorted(worst.items()):
        print(f"{codec}: {count} tensors, largest relative difference {largest:.1e}")
    print(f"kept: {len(kept)} tensors")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: decode_archive.py ARCHIVE.pixel DENSE.safetensors")
    try:
        sys.exit(main(sys.argv[1], sys.argv[2]))
    except Refused as error:
        sys.exit(f"refused: {error}")
