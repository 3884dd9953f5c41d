#!/usr/bin/env bash
# usage: stage.sh PROFILE DEST     Puts the built program and the libraries that it loads below DEST, as bin/nibble finds them there.
#
# What is left out was never asked for: the loader is asked which libraries `nibble` needs and, where libtorch's CUDA part was
# fetched, which that and its linear algebra need. Beside these CUDA loads NVRTC's built-ins and cuDNN's parts by name (libtorch may
# take cuDNN's attention on newer GPUs). libtorch_cuda.so does not load without those for several GPUs and for sparse numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=$1 dest=$2
program=${CARGO_TARGET_DIR:-target}/$profile/nibble
torch=libtorch/torch/lib

install -D -s "$program" "$dest/bin/nibble"
loaded=("$program")
for library in "$torch"/libtorch_cuda.so "$torch"/libtorch_cuda_linalg.so; do
  if [ -e "$library" ]; then loaded+=("$library"); fi
done
needed=$(for file in "${loaded[@]}"; do ldd "$file"; done | awk '$3 ~ /\/libtorch\// { print $3 }')
by_name=$(find libtorch/nvidia -name 'libnvrtc-builtins.so*' ! -name '*.alt.*' -o -path '*/cudnn/lib/*.so*')
if ldd "${loaded[@]}" | grep 'not found'; then
  echo "stage: the libraries above are missing; run make libtorch, for a GPU with CUDA=1" >&2
  exit 1
fi
if [ ${#loaded[@]} = 1 ]; then by_name=; fi
for library in $needed "${loaded[@]:1}" $by_name; do
  library=$(realpath --relative-to=. "$library")
  [ -e "$dest/$library" ] || install -D -m 644 "$library" "$dest/$library"
done
# Symbols that only a debugger reads: 70 MB of libtorch_cpu.so.
find "$dest/libtorch" -name 'lib*torch*.so' -exec strip --strip-unneeded {} +
install -D -m 644 -t "$dest/share/doc/nibble" README.md LICENSE-APACHE LICENSE-MIT
install -D -m 644 calib-data/README.md "$dest/share/doc/nibble/calibration-data.md"
du -sh "$dest"
