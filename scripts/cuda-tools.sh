#!/usr/bin/env bash
# Fetches NVIDIA's assembler, disassembler and library of device functions, none of which needs a device, from PyPI, and
# prints the folder they are in. As CUDA_PATH it is what CubeCL looks for.
#
#   cargo run -p pixel-gpu --features cuda --bin cuda_kernels -- --tools "$(scripts/cuda-tools.sh)"
#
# They are NVIDIA's, under the licence of the CUDA Toolkit, and stay out of the repository.
set -euo pipefail

version=13.2.78
tools="${XDG_CACHE_HOME:-$HOME/.cache}/pixel/cuda-$version"
if [ ! -x "$tools/nvdisasm" ] || [ ! -e "$tools/nvvm/libdevice/libdevice.10.bc" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$work" \
        "nvidia-cuda-nvcc==$version" "nvidia-cuda-nvdisasm==$version" "nvidia-nvvm==$version" >&2
    for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/wheels"; done
    mkdir -p "$tools"
    mkdir -p "$tools/nvvm/libdevice"
    cp "$work/wheels/nvidia/cu13/nvvm/libdevice/libdevice.10.bc" "$tools/nvvm/libdevice/"
    # The disassembler last: it tells that all is there.
    for program in ptxas nvdisasm; do
        install -m 755 "$work/wheels/nvidia/cu13/bin/$program" "$tools/$program"
    done
fi
echo "$tools"
