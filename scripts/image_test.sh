#!/usr/bin/env bash
# usage: image_test.sh MODEL_DIR     Builds the container images, prints their sizes, and has them quantize a copy of MODEL_DIR.
#
# With a Docker engine that is `docker build` and `docker run`. Without one it is buildah without privileges beyond root's own
# (`--isolation chroot`), on base images that are made here from Debian's packages and the Rust toolchain of this machine; then
# packages come from where this machine has them, by mounts that leave nothing in the image.
# IMAGES="cpu cuda" says which; without an engine the default is cpu, because every layer is a copy there.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
uid=12345
fail() { echo "image-test: $1" >&2; exit 1; }

scratch=$(mktemp -d)
cleanup_docker() { :; }
trap 'cleanup_$engine; rm -rf "$scratch"' EXIT
engine=docker
if docker info >/dev/null 2>&1; then
  images=${IMAGES:-cpu cuda}
else
  images=${IMAGES:-cpu}
  source scripts/image_buildah.sh
  engine=buildah
  prepare_buildah
fi

# DOCKER_BUILD_OPTIONS, several words, are for engines whose builds need them, such as `--network host`.
build_docker() { docker build ${DOCKER_BUILD_OPTIONS:-} --tag "nibble:$1" --target "$1" .; }
size_docker() { docker image inspect --format '{{.Size}}' "nibble:$1"; }
# run IMAGE MODELS ARGUMENT...: the image's entry point on a directory mounted at /models, as another user, without a network.
run_docker() {
  local image=$1 models=$2
  shift 2
  docker run --rm --name nibble-image-test --network none --user "$uid:$uid" --volume "$models:/models" "nibble:$image" "$@"
}
# As a user stops what runs.
stop_docker() { docker stop --time 60 nibble-image-test >/dev/null; }

expect() {
  [ "$1" = "$2" ] || fail "$3: expected $2, found $1"
}

for image in $images; do
  "build_$engine" "$image"
  echo "image-test: nibble:$image is $(($("size_$engine" "$image") / 1000000)) MB"
done
for image in $images; do
  models=$scratch/$image
  mkdir "$models"
  cp "$model"/*.json "$model"/*.safetensors "$models"
  # As on a machine where the model is the caller's.
  chown -R "$uid:$uid" "$models" 2>/dev/null || uid=$(id -u)
  "run_$engine" "$image" "$models" --version
  for method in awq gptq; do
    start=$(date +%s)
    "run_$engine" "$image" "$models" --$method --group-size 64 --num-samples 8 --seq-len 512 --quiet
    echo "image-test: --$method in nibble:$image took $(($(date +%s) - start)) s"
  done
  for directory in AWQ-4bit GPTQ-8bit; do
    [ -e "$models/$directory/model.safetensors" ] || fail "no $directory/model.safetensors"
    expect "$(stat -c %u:%g "$models/$directory" "$models/$directory/model.safetensors" | uniq)" "$uid:$uid" "owner of $directory"
    grep -q "^method       ${directory%%-*}" "$models/$directory/quantization_report.log" || fail "$directory: its report does not name it"
  done
  # What is there already, no model, and a directory that is not the caller's.
  status=0; "run_$engine" "$image" "$models" --gptq --group-size 64 --quiet 2>"$scratch/said" || status=$?
  expect "$status" 3 "status of an output that exists"
  status=0; "run_$engine" "$image" "$scratch/nothing" --quiet 2>"$scratch/said" || status=$?
  expect "$status" 3 "status without a model"
  rm -r "$models"/*-*bit
  # Stopped on the way, a run goes on where it was.
  journal=$models/.GPTQ-8bit.partial/journal.jsonl
  "run_$engine" "$image" "$models" --gptq --group-size 64 --num-samples 8 --seq-len 512 --quiet &
  pid=$!
  until [ -s "$journal" ]; do
    kill -0 $pid || fail "the run that was to be stopped ended by itself"
    sleep 0.1
  done
  "stop_$engine"
  status=0; wait $pid || status=$?
  expect "$status" 143 "status of a run that was stopped"
  "run_$engine" "$image" "$models" --gptq --group-size 64 --num-samples 8 --seq-len 512 2>"$scratch/said"
  grep -q "layers are finished" "$scratch/said" || fail "it did not go on: $(cat "$scratch/said")"
  rm -r "$models"/*-*bit
  chmod -R a-w "$models"
  status=0; "run_$engine" "$image" "$models" --gptq --group-size 64 --num-samples 8 --seq-len 512 --quiet 2>"$scratch/said" || status=$?
  expect "$status" 4 "status of a directory that is not writable"
  chmod -R u+w "$models"
  grep -q -e --user "$scratch/said" || fail "no word of --user: $(cat "$scratch/said")"
  echo "image-test: nibble:$image is good"
done
