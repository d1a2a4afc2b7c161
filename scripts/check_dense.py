"""Checks that a decompressed checkpoint loads in Python and resembles its source: names, shapes, types, error."""

import sys

import numpy as np
from safetensors.numpy import load_file


def main(source: str, dense: str) -> None:
    original = load_file(f"{source}/model.safetensors")
    restored = load_file(f"{dense}/model.safetensors")
    assert original.keys() == restored.keys(), original.keys() ^ restored.keys()
    worst = 0.0
    for name, weight in original.items():
        other = restored[name]
        assert (weight.shape, weight.dtype) == (other.shape, other.dtype), name
        weight, other = weight.astype(np.float64), other.astype(np.float64)
        worst = max(worst, float(((weight - other) ** 2).sum() / (weight**2).sum()))
    assert worst < 0.5, worst
    print(f"{len(original)} tensors loaded by safetensors, largest relative MSE {worst:.4f}")


main(*sys.argv[1:])
