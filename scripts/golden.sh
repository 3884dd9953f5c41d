#!/usr/bin/env bash
# Makes every file in tests/golden again with the reference implementation it came from; fails where one differs from
# what is committed by more than another CPU would. Each generating script says in its first lines what it needs and what it writes.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1
# Sums depend on how many threads share them. What another kind of CPU changes is allowed for at the end.
export OMP_NUM_THREADS=1
model=$PWD/models/SmolLM2-135M-Instruct

generate() {  # VENV PYTHON-ARGS...
  local python
  python=$PWD/$(scripts/venv.sh "$1")
  echo "golden: ${*:2}"
  (cd tests/golden/generate && "$python" "${@:2}")
}

generate transformers calibration.py
generate transformers chat.py
generate transformers logits.py
generate transformers vision.py
generate transformers images.py
generate transformers logits.py "$model"
generate gptqmodel pack.py gptq ../pack_gptq.safetensors
# -P: awq.py must not pass for the package awq.
generate autoawq -P pack.py awq ../pack_awq.safetensors
generate autoawq -P awq.py ..
# The second argument checks the group-aware order against GPTQModel's.
generate transformers gptq.py .. "$(echo "$PWD"/.venvs/gptqmodel/lib/python3*/site-packages)/gptqmodel/quantization/gar.py"

"${PYTHON:-python3}" scripts/canonical_safetensors.py tests/golden/*.safetensors
"$(scripts/venv.sh transformers)" scripts/same_golden.py tests/golden
