#!/usr/bin/env bash
# Runs the programs of a cargo command on the recording driver, which carries CUDA kernels out on the host.
#
#   scripts/without-gpu.sh cargo test -p pixel-core --features cuda --lib -- cuda::
#
# CUDA_PATH is set for the programs alone: for cargo it would be a reason to build what depends on CUDA again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
driver="${XDG_CACHE_HOME:-$HOME/.cache}/pixel/driver"

cargo build --quiet --manifest-path "$here/../Cargo.toml" -p pixel-recording-driver
mkdir -p "$driver"
cp "${CARGO_TARGET_DIR:-$here/../target}/debug/libpixel_recording_driver.so" "$driver/libcuda.so"
host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${host}_RUNNER=env PIXEL_RECORD_RUN=1 CUDA_PATH=$("$here/cuda-tools.sh") LD_LIBRARY_PATH=$driver"
exec "$here/with-llvm.sh" "$@"
