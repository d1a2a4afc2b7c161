"""Checks that a decompressed checkpoint loads in Python and resembles its source: names, shapes, types, error.

Usage: check_dense.py SOURCE DENSE, both directories with model.safetensors. Needs numpy and safetensors.
"""

import sys

import numpy as np
from safetensors.numpy import load_file

# Half a bit per weight leaves .7 of a weight's power as error.
LIMIT = 0.75


def relative_mse(weight: np.ndarray, other: np.ndarray) -> float:
    """The squared error over the power; 0 for an exact reproduction, also of zero."""
    weight, other = weight.astype(np.float64), other.astype(np.float64)
    error = float(((weight - other) ** 2).sum())
    return 0.0 if error == 0.0 else error / float((weight**2).sum())


def main(source: str, dense: str) -> None:
    original = load_file(f"{source}/model.safetensors")
    restored = load_file(f"{dense}/model.safetensors")
    if original.keys() != restored.keys():
        sys.exit(f"different tensors: {sorted(original.keys() ^ restored.keys())}")
    worst = 0.0
    for name, weight in original.items():
        other = restored[name]
        if (weight.shape, weight.dtype) != (other.shape, other.dtype):
            sys.exit(f"{name}: {weight.shape} {weight.dtype} became {other.shape} {other.dtype}")
        error = relative_mse(weight, other)
        if not error < LIMIT:
            sys.exit(f"{name}: relative MSE {error}")
        worst = max(worst, error)
    print(f"{len(original)} tensors loaded by safetensors, largest relative MSE {worst:.4f}")


if len(sys.argv) != 3:
    sys.exit(__doc__)
main(*sys.argv[1:])
