#!/usr/bin/env bash
# Runs a command in which the features `cuda` and `cpu` build without a download.
#
#   scripts/with-llvm.sh cargo test -p pixel-nn --features cpu
#
# The build of CubeCL's compiler fetches LLVM 23.1. Where that cannot be reached, Debian's LLVM 22 stands in (package
# llvm-22-dev; as root this script installs it). Nobody upstream supports this: for compile checks and tests alone.
set -euo pipefail

version=22
stand_in="${XDG_CACHE_HOME:-$HOME/.cache}/pixel/llvm"
bundle="tracel-llvm-23.1.0-4"

packages=("llvm-$version-dev" "libpolly-$version-dev" libz3-dev zlib1g-dev libzstd-dev libxml2-dev)
libz3="/usr/lib/$(uname -m)-linux-gnu/libz3.so"
if [ ! -x "/usr/lib/llvm-$version/bin/llvm-config" ] || [ ! -e "$libz3" ]; then
    [ "$(id -u)" = 0 ] || { echo "LLVM $version is missing: apt-get install ${packages[*]}" >&2; exit 1; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >&2
fi
# Made once: what the build looks at must not seem new at every call.
if [ ! -e "$stand_in/lib/liblibz3.so" ]; then
    mkdir -p "$stand_in/data/tracel" "$stand_in/lib"
    # A folder of links: the marker that stops the download does not belong into the package's own.
    [ ! -L "$stand_in/data/tracel/$bundle" ] || rm "$stand_in/data/tracel/$bundle"
    mkdir -p "$stand_in/data/tracel/$bundle"
    ln -sfn "/usr/lib/llvm-$version"/* "$stand_in/data/tracel/$bundle/"
    touch "$stand_in/data/tracel/$bundle/.tracel-llvm-installed"
    # The list of libraries names this one with its prefix.
    ln -sfn "$libz3" "$stand_in/lib/liblibz3.so"
fi
export XDG_DATA_HOME="$stand_in/data"
export LIBRARY_PATH="$stand_in/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
exec "$@"
