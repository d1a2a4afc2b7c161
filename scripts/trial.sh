#!/usr/bin/env bash
# Packages the crates as for the registry, verifies each by building what was packaged, and runs `trial/`, a Burn user's
# project, against the packages, in a debug build with the lines that the README asks for.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

# Cargo keeps what it unpacks from its registry of packages not yet published by name and version, whatever they hold.
rm -rf "${CARGO_HOME:-$HOME/.cargo}"/registry/{src,cache}/-*/pixel-*
# So is what it has compiled of them.
for compiled in $(grep -lE 'registry/src/-[^/]*/pixel-' "$CARGO_TARGET_DIR"/debug/deps/pixel_*.d 2>/dev/null || true); do
    hash=${compiled##*-}
    rm -rf "$CARGO_TARGET_DIR"/debug/.fingerprint/pixel-*-"${hash%.d}"
done
# Whether they compile is all that matters here.
cargo package --workspace --exclude pixel-bench --exclude pixel-examples --exclude pixel-gpu \
    --exclude pixel-recording-driver --config profile.dev.debug=false "$@"

packages="$CARGO_TARGET_DIR/trial/packages"
rm -rf "$packages"
mkdir -p "$packages"
patches=()
for crate in pixel-core pixel-nn pixel-models; do
    archive=$(ls "$CARGO_TARGET_DIR/package/$crate"-[0-9]*.crate)
    tar -xzf "$archive" -C "$packages"
    folder="$packages/$(basename "$archive" .crate)"
    for file in README.md LICENSE; do
        [ -s "$folder/$file" ] || { echo "$archive has no $file"; exit 1; }
    done
    patches+=(--config "patch.crates-io.$crate.path=\"$folder\"")
done
# The lock is not kept: the newest patch of every dependency is what a user gets.
rm -f trial/Cargo.lock
cargo run --manifest-path trial/Cargo.toml "${patches[@]}"
