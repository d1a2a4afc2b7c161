#!/usr/bin/env bash
# Makes gpu-kit/: all that a machine with a GPU and its driver needs to say what PIXEL does there.
#
#   scripts/gpu-kit.sh              # here: builds the programs
#   gpu-kit/run.sh FOLDER           # there: under eight minutes; FOLDER gets report.md, report.json
#
# The programs are those of `.ci/run`, with every backend in them, stripped and packed by xz. Libraries that they load
# and that a bare machine may lack lie beside them. Vulkan needs its loader (libvulkan.so.1) there; CUDA nothing but the
# driver, and the library of device functions that lies beside them for what Burn calls.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pixel/target}"
export CARGO_INCREMENTAL=0
backends=(-p pixel-core -p pixel-nn -p pixel-gpu --features
    pixel-nn/ndarray,pixel-nn/wgpu,pixel-nn/cuda,pixel-nn/cpu,pixel-nn/autodiff,pixel-gpu/cuda,pixel-gpu/wgpu)
built=$(scripts/with-llvm.sh cargo test "${backends[@]}" --lib --test cuda_kernels --no-run --message-format json |
    python3 -c '
import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("reason") != "compiler-artifact" or not built["executable"]:
        continue
    target = built["target"]
    if target["name"] == "pixel_core" and built["profile"]["test"]:
        print("properties", built["executable"])
    if target["name"] == "gpu_report" and not built["profile"]["test"]:
        print("gpu_report", built["executable"])
')

rm -rf gpu-kit
mkdir -p gpu-kit/lib gpu-kit/cuda/nvvm/libdevice
# For the functions of Burn's own kernels; ours need none.
cp "$(scripts/cuda-tools.sh)/nvvm/libdevice/libdevice.10.bc" gpu-kit/cuda/nvvm/libdevice/
while read -r name program; do
    strip -o "gpu-kit/$name" "$program"
    # Once for both: they load the same.
    ldd "$program" | awk '/=> \// && $1 !~ /^lib(c|m)\.so/ { print $3 }' | xargs -I{} cp -L {} gpu-kit/lib/
    xz --x86 --lzma2=preset=6 --threads=0 --force "gpu-kit/$name"
done <<< "$built"

cat > gpu-kit/run.sh <<'RUN'
#!/bin/sh
# Runs on the machine with the GPU: run.sh FOLDER [options of gpu_report]
set -eu
kit=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for program in properties gpu_report; do
    # Where only so much can be carried at a time, one of them may be missing.
    [ -e "$kit/$program.xz" ] || continue
    if command -v xz >/dev/null; then
        xz -dc "$kit/$program.xz" > "$work/$program"
    else
        python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' \
            "$kit/$program.xz" > "$work/$program"
    fi
    chmod +x "$work/$program"
done
# Behind the machine's own.
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/lib/x86_64-linux-gnu:/usr/lib64:$kit/lib"
export CUDA_PATH="${CUDA_PATH:-$kit/cuda}"
if [ -e "$work/properties" ]; then set -- --properties "$work/properties" "$@"; fi
if [ -e "$work/gpu_report" ]; then
    "$work/gpu_report" --out "$out" "$@"
else
    mkdir -p "$out"
    for backend in cuda wgpu; do
        PROPTEST_RNG_SEED=2026 timeout 200 "$work/properties" "tests::$backend::" > "$out/properties-$backend.txt" 2>&1 || true
        grep -e FAILED -e 'test result' "$out/properties-$backend.txt" || true
    done
fi
RUN
chmod +x gpu-kit/run.sh
du -sh gpu-kit gpu-kit/*.xz
