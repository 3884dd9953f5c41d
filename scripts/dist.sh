#!/usr/bin/env bash
# usage: dist.sh     Packs target/dist/nibble and its libraries into target/nibble-VERSION-x86_64-linux.tar.gz, and tries the archive.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=nibble-$version-x86_64-linux
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

scripts/stage.sh dist "$scratch/$name"
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$scratch" -czf "target/$name.tar.gz" "$name"
rm -rf "${scratch:?}/$name"
tar -C "$scratch" -xzf "target/$name.tar.gz"
# With nothing of this checkout or of its environment.
"${PYTHON:-python3}" scripts/tiny_model.py "$scratch/model"
(cd / && env -i "$scratch/$name/bin/nibble" --version && env -i "$scratch/$name/bin/nibble" --quiet --gptq --group-size 32 --seq-len 64 \
  --num-samples 8 --force-cpu "$scratch/model")
test -e "$scratch/model/GPTQ-8bit/model.safetensors"
ls -l "target/$name.tar.gz"
