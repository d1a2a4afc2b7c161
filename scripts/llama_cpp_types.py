#!/usr/bin/env python3
"""Shows llama.cpp's quantization types on the tensors that PIXEL compresses.

    llama_cpp_types.py TYPE MODEL OUT [--calibration STATS.safetensors] [--fallback pad|join|llama.cpp]
    pixel eval OUT --against MODEL --text TEXT

MODEL is a directory in Hugging Face layout with weights in F32. OUT, which must not exist, becomes the same directory
with the linear layers of the blocks quantized to TYPE (q4_K, iq3_xxs, ...) and dequantized to F32 again, both by
llama.cpp's own code. Everything else stays as it is: embeddings, heads, norms, biases, and matrices outside the blocks.
One type for all of them is what llama-quantize calls --pure; its mixtures (Q3_K_M, ...) spend more on some tensors.
Printed are the bits per weight and the relative MSE, the squared error of all these weights over their power. Weights
that have been quantized before make a type look good whose grid is alike: q4_K on a model that was in Q4_1.

--calibration STATS passes an importance matrix: the mean square of each column's inputs, which is what llama-imatrix
collects and the diagonal of the moments that `pixel calibrate` writes. Moments weighted by gradients are something
else; they are taken, and the output says so. iq1_s, iq2_xxs and iq2_xs cannot do without importance: llama-quantize
refuses them, here all columns count the same.

--fallback decides about rows that are not a whole number of the type's blocks (256 weights for most):
  pad        a row is filled up with zeros of no importance, and its bits are those of the weights that it has, as if
             the filling were free: generous to llama.cpp, which cannot store such rows. (default)
  join       blocks run on across the ends of rows: as many bits as the type has, in a layout that llama.cpp lacks.
  llama.cpp  what llama-quantize does: another type for these matrices, with more bits, which are counted.

Needs numpy, safetensors, pip and gcc. The first run downloads the source package of llama-cpp-python (77 MB) from PyPI
by pip, which fetches that package's build tools as well to read its metadata. The package carries llama.cpp. Its
SHA-256 is checked, and two files of ggml are compiled into $XDG_CACHE_HOME/pixel/llama.cpp (default ~/.cache).
llama.cpp is under the MIT licence, which is kept beside the library; nothing of it is redistributed with PIXEL.
"""

import argparse
import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

# `enum ggml_type`: the numbers of GGUF files, which do not change.
TYPES = {
    "q8_0": 8, "q6_K": 14, "q5_K": 13, "q5_1": 7, "q5_0": 6, "q4_K": 12, "q4_1": 3, "q4_0": 2, "q3_K": 11, "q2_K": 10,
    "iq4_nl": 20, "iq4_xs": 23, "iq3_s": 21, "iq3_xxs": 18, "iq2_s": 22, "iq2_xs": 17, "iq2_xxs": 16, "iq1_m": 29,
    "iq1_s": 19,
}  # fmt: skip
F16 = {"f16": 1}
# `tensor_type_fallback` of src/llama-quant.cpp in the release above; others of them took iq4_nl for q2_K and q3_K.
FALLBACK = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **{"q2_K": "q4_0", "q3_K": "q4_0", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0"},
}

# PIXEL's selection (pixel-core/src/recipe.rs), and within it what belongs to a numbered block.
EMBEDDINGS = re.compile(
    r"(^|\.)(embed_(tokens|in|out)|([a-z_]+_)?embeddings?|wte|wpe|lm_head|shared)\.weight$|^output\.weight$"
)
IN_BLOCK = re.compile(r"\.\d+\..*\.weight$")
MIN_WEIGHTS = 1024
# Importances below this part of their mean are raised to it: a block of zeros would be divided by its sum.
LEAST_IMPORTANCE = 1e-10
# Checksums of the files that were, what is hidden, and weight files: ours are written, others hold the same weights.
NOT_COPIED = (
    "SHA256SUMS", ".*", "*.safetensors", "*.safetensors.index.json", "*.bin", "*.gguf", "*.h5", "*.onnx", "*.ot", "*.pt"
)  # fmt: skip

# What the two files of ggml call of its others: a lock, which one thread does without, and three functions that
# quantization never reaches.
REST_OF_GGML = """\
#include <stdlib.h>
void ggml_critical_section_start(void) {}
void ggml_critical_section_end(void) {}
void ggml_backend_tensor_memset(void) { abort(); }
void ggml_backend_tensor_set(void) { abort(); }
void ggml_backend_buffer_get_usage(void) { abort(); }
"""


class InputError(Exception):
    """The model, the calibration or this machine cannot do what was asked."""


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


class Ggml:
    """llama.cpp's tensor library, as far as quantization goes."""

    def __init__(self, path):
        library = ctypes.CDLL(str(path))
        library.ggml_get_type_traits.argtypes = [ctypes.c_int]
        library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
        library.ggml_type_name.argtypes = [ctypes.c_int]
        library.ggml_type_name.restype = ctypes.c_char_p
        library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
        library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        library.ggml_quantize_chunk.argtypes = [
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        ]
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
        library.ggml_validate_row_data.restype = ctypes.c_bool
        self._library = library
        self._ids = TYPES | F16
        for name, number in self._ids.items():
            assert library.ggml_type_name(number).decode() == name, f"type {number} of ggml is not {name}"

    def traits(self, name):
        return self._library.ggml_get_type_traits(self._ids[name]).contents

    def requires_importance(self, name):
        return self._library.ggml_quantize_requires_imatrix(self._ids[name])

    def bits_per_weight(self, name):
        traits = self.traits(name)
        return 8 * traits.type_size / traits.block_size

    def quantize(self, name, rows, importance):
        """The bytes of `rows` [n, width] in type `name`; `importance` [width] or None."""
        traits, (num_rows, width) = self.traits(name), rows.shape
        assert width % traits.block_size == 0, f"{width} is not a number of blocks of {traits.block_size}"
        rows = np.ascontiguousarray(rows, np.float32)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
            assert importance.shape == (width,), f"{importance.shape} importances for {width} columns"
        codes = np.zeros(rows.size // traits.block_size * traits.type_size, np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._library.ggml_quantize_chunk(
            self._ids[name], rows.ctypes.data, codes.ctypes.data, 0, num_rows, width, weights
        )
        if not self._library.ggml_validate_row_data(self._ids[name], codes.ctypes.data, codes.size):
            raise InputError(f"llama.cpp wrote scales in {name} that are not finite")
        return codes

    def dequantize(self, name, codes, shape):
        out = np.empty(shape, np.float32)
        self.traits(name).to_float(codes.ctypes.data, out.ctypes.data, out.size)
        return out

    def round_trip(self, name, rows, importance):
        """`rows` [n, width] after quantization to type `name`."""
        return self.dequantize(name, self.quantize(name, rows, importance), rows.shape)


def run(command, action):
    """Runs a command; the end of what it printed is the error if it fails."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise InputError(f"{action} needs '{command[0]}', which is not installed") from error
    if done.returncode != 0:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise InputError(f"{action} failed:\n{end}")


def download_source(directory):
    """The source package of llama-cpp-python, as pip finds it and as it was when this script was written."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    run([*pip, "--dest", directory, f"{PACKAGE}=={VERSION}"], f"the download of {PACKAGE} {VERSION} from PyPI")
    found = list(directory.glob("*.tar.gz"))
    if len(found) != 1:
        raise InputError(f"pip left {len(found)} source packages of {PACKAGE} {VERSION}, 1 expected")
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != SHA256:
        raise InputError(f"{found[0].name} has SHA-256 {digest}, expected {SHA256}")
    return found[0]


def unpack_ggml(package, directory):
    """ggml's C sources and headers of the package's vendor/llama.cpp, and the licence, below `directory`."""
    folders = {PurePosixPath(folder) for folder in ("ggml/include", "ggml/src", "ggml/src/ggml-cpu")}
    with tarfile.open(package) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.parts[1:3] != ("vendor", "llama.cpp"):
                continue
            path = PurePosixPath(*path.parts[3:])
            is_source = path.suffix in (".c", ".h") and path.parent in folders
            if is_source or path == PurePosixPath("LICENSE"):
                target = directory / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())


def build(library):
    """Downloads, compiles, and moves the library to its place last, so that what lies there is whole."""
    print(f"building llama.cpp's types of {PACKAGE} {VERSION} in {library.parent}", file=sys.stderr)
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        scratch = Path(scratch)
        unpack_ggml(download_source(scratch), scratch)
        ggml = scratch / "ggml"
        (scratch / "ggml-version.h").write_text(f'#define GGML_VERSION "{VERSION}"\n#define GGML_COMMIT ""\n')
        (scratch / "rest.c").write_text(REST_OF_GGML)
        # As ggml builds these files: not for the machine at hand, so that codes are the same everywhere.
        flags = ["-O3", "-std=gnu11", "-D_GNU_SOURCE", "-DNDEBUG", "-w", "-fPIC", "-shared", "-Wl,--no-undefined"]
        folders = [f"-I{scratch}", f"-I{ggml / 'include'}", f"-I{ggml / 'src'}"]
        sources = [ggml / "src" / "ggml.c", ggml / "src" / "ggml-quants.c", scratch / "rest.c"]
        run(["gcc", *flags, *folders, *sources, "-lm", "-o", scratch / library.name], "compiling ggml")
        shutil.move(scratch / "LICENSE", library.parent / "LICENSE")
        os.replace(scratch / library.name, library)


def load_ggml():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    library = cache / "pixel" / "llama.cpp" / f"libggml-types-{VERSION}.so"
    if not library.exists():
        build(library)
    return Ggml(library)


class Importance:
    """Mean squares of the inputs' columns, from a calibration file of PIXEL's."""

    def __init__(self, path):
        self._path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            self._file = safe_open(path, "np")
            description = json.loads((self._file.metadata() or {})["pixel_calibration"])
        except Exception as error:
            raise InputError(f"{path}: not a calibration of PIXEL's ({error!r})") from error
        self.weighting = description["weighting"]
        self._groups = description["groups"]
        self._group_of = {weight: name for name, group in self._groups.items() for weight in group["weights"]}

    def __str__(self):
        tokens = max(group["tokens"] for group in self._groups.values())
        kind = "the mean square of each input" if self.weighting == "uniform" else (
            f"weighted by '{self.weighting}', which is NOT what llama-imatrix collects"
        )
        return f"{self._path}, {tokens} tokens: {kind}"

    def of(self, weight, d_input):
        """The importance of the columns of a weight, [d_input]."""
        group = self._group_of.get(weight)
        if group is None:
            raise InputError(f"{self._path}: nothing about '{weight}'")
        moments = self._file.get_tensor(f"{group}.moments")
        if moments.shape != (d_input * (d_input + 1) // 2,):
            raise InputError(f"{self._path}: moments {moments.shape} of '{group}' do not fit a width of {d_input}")
        rows = np.arange(d_input)
        diagonal = moments[rows * (rows + 3) // 2]
        if not (np.isfinite(diagonal).all() and (diagonal >= 0).all() and diagonal.any()):
            raise InputError(f"{self._path}: '{group}' has mean squares that are negative, not finite or all 0")
        return np.maximum(diagonal, np.float32(LEAST_IMPORTANCE) * diagonal.mean())


class Totals:
    """What was done to the matrices, summed."""

    def __init__(self):
        self.matrices = self.weights = 0
        self.bits = self.stored_bits = 0.0
        self.error = self.power = 0.0
        self.remarks = {}

    def remark(self, text):
        self.remarks[text] = self.remarks.get(text, 0) + 1

    def add(self, weight, other, bits, stored_bits):
        weight = weight.astype(np.float64)
        self.matrices += 1
        self.weights += weight.size
        self.bits += bits
        self.stored_bits += stored_bits
        self.error += float(((weight - other) ** 2).sum())
        self.power += float((weight**2).sum())


def padded(weight, importance, block):
    """`weight` with zeros at the end of each row up to a number of blocks, and their importance."""
    missing = -weight.shape[1] % block
    if importance is not None:
        filling = np.full(missing, LEAST_IMPORTANCE * importance.mean(), np.float32)
        importance = np.concatenate([importance, filling])
    return np.pad(weight, ((0, 0), (0, missing))), importance


def joined(weight, importance, block, name):
    """As few rows in one as make a number of blocks, and their importance."""
    rows, width = weight.shape
    together = math.lcm(width, block) // width
    if rows % together != 0:
        raise InputError(f"'{name}': {rows} rows are not a multiple of {together}, use --fallback pad")
    importance = None if importance is None else np.tile(importance, together)
    return weight.reshape(rows // together, width * together), importance


def round_trip(ggml, kind, fallback, name, weight, importance, totals):
    """The weight after quantization to type `kind`, or to what stands in for it."""
    rows, width = weight.shape
    block = ggml.traits(kind).block_size
    fits = width % block == 0
    if not fits and fallback == "llama.cpp":
        kind = FALLBACK.get(kind, kind)
        if width % ggml.traits(kind).block_size != 0:
            kind = "f16"
        totals.remark(f"of width {width} in {kind}, {ggml.bits_per_weight(kind):g} bits per weight")
        fits, block = True, ggml.traits(kind).block_size
    if importance is None and ggml.requires_importance(kind):
        importance = np.ones(width, np.float32)
    if fits:
        source, columns = weight, importance
    elif fallback == "pad":
        source, columns = padded(weight, importance, block)
        totals.remark(f"of width {width} padded with zeros to {source.shape[1]}, which are not counted")
    else:
        source, columns = joined(weight, importance, block, name)
        totals.remark(f"of width {width} joined, {source.shape[1] // width} rows in one")
    result = ggml.round_trip(kind, source, columns)
    result = result[:, :width] if source.shape[0] == rows else result.reshape(rows, width)
    if not np.isfinite(result).all():
        raise InputError(f"'{name}': {kind} made values that are not finite")
    bits = ggml.bits_per_weight(kind)
    totals.add(weight, result, bits * weight.size, bits * source.size)
    return np.ascontiguousarray(result)


def is_selected(name, shape):
    is_matrix = len(shape) == 2 and math.prod(shape) >= MIN_WEIGHTS
    return is_matrix and IN_BLOCK.search(name) is not None and EMBEDDINGS.search(name) is None


def convert(ggml, kind, model, out, importance, fallback):
    """Writes the weight files of `out`; returns what was done, and the matrices outside the blocks that were kept."""
    totals, kept = Totals(), []
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            metadata, tensors = file.metadata(), {}
            for name in file.keys():
                shape, dtype = file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()
                if dtype in ("BF16", "F16", "F64") or is_selected(name, shape) and dtype != "F32":
                    raise InputError(f"{path.name}: '{name}' is {dtype}, only F32 is supported")
                tensor = file.get_tensor(name)
                if is_selected(name, shape):
                    if not np.isfinite(tensor).all():
                        raise InputError(f"{path.name}: '{name}' has values that are not finite")
                    columns = None if importance is None else importance.of(name, shape[1])
                    tensor = round_trip(ggml, kind, fallback, name, tensor, columns, totals)
                elif len(shape) == 2 and dtype == "F32":
                    kept.append(name)
                tensors[name] = tensor
        save_file(tensors, out / path.name, metadata)
    if totals.matrices == 0:
        raise InputError(f"{model}: no matrix of a linear layer in its blocks")
    return totals, kept


def report(ggml, kind, importance, totals, kept):
    print(f"{kind} of llama.cpp, from {PACKAGE} {VERSION}")
    if importance is not None:
        print(f"importance: {importance}")
    elif ggml.requires_importance(kind):
        print(f"importance: none, all columns the same; llama-quantize would refuse {kind}")
    else:
        print("importance: none")
    bits, stored = totals.bits / totals.weights, totals.stored_bits / totals.weights
    print(f"{totals.matrices} matrices, {totals.weights} weights, {bits:.4f} bits per weight")
    for remark, count in totals.remarks.items():
        print(f"  {count} matrices {remark}")
    if stored != bits:
        print(f"  with the padding it would be {stored:.4f} bits per weight")
    print(f"relative MSE {totals.error / totals.power:.6f}")
    print(f"kept in F32: {', '.join(kept) or 'no other matrix'}")


def type_name(text):
    """The type, in the case of llama.cpp's names."""
    found = [name for name in TYPES if name.lower() == text.lower()]
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(TYPES)}")
    return found[0]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("type", type=type_name, metavar="TYPE", help=", ".join(TYPES))
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--calibration", type=Path, metavar="STATS")
    parser.add_argument("--fallback", choices=("pad", "join", "llama.cpp"), default="pad")
    return parser.parse_args()


def main():
    args = arguments()
    if not any(args.model.glob("*.safetensors")):
        raise InputError(f"{args.model}: no directory with *.safetensors")
    if args.out.exists():
        raise InputError(f"{args.out} exists")
    importance = None if args.calibration is None else Importance(args.calibration)
    ggml = load_ggml()
    partial = args.out.with_name(args.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(args.model, partial, ignore=shutil.ignore_patterns(*NOT_COPIED))
        for index in args.model.glob("*.safetensors.index.json"):
            shutil.copy(index, partial)
        totals, kept = convert(ggml, args.type, args.model, partial, importance, args.fallback)
        partial.rename(args.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(ggml, args.type, importance, totals, kept)


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"llama_cpp_types.py: {error}")
