"""What Nibble writes, held against transformers: for each golden configuration a tiny model is quantized by AWQ and by
GPTQ, dequantized by the code below, which knows the formats' descriptions and nothing of Nibble's, and

- `nibble eval` must find no difference between the packed directory and the dequantized one,
- config.json must name every linear that is packed, and no other,
- each tensor must be its original but for the grid's steps (with AWQ, but for a factor for each row and each column too),
- transformers must load the dequantized tensors under their published names, and find the perplexity that Nibble finds.

usage: families.py [--nibble PROGRAM] [--all] [NAME ...]      (in the environment of scripts/requirements/transformers.txt)

Without names: the first configuration of each model type; with --all every one.
"""
import argparse
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/golden/generate"))

import formula  # noqa: E402
import logits  # noqa: E402

VOCAB_SIZE, WINDOWS, SEQ_LEN = 128, 4, 24
CALIBRATION = ["--group-size", "-1", "--seq-len", str(SEQ_LEN), "--num-samples", "8", "--quiet", "--overwrite"]
METHODS = {"AWQ-4bit": ["--awq"], "GPTQ-8bit": ["--gptq"]}
# Relative difference of two perplexities that both come from the same float32 numbers.
TOLERANCE = 1e-4
# Most relative difference (Frobenius norms) of a tensor from its original; of one expert from its own, which few tokens calibrate.
LIKENESS = {"AWQ-4bit": (0.15, 0.3), "GPTQ-8bit": (0.02, 0.02)}
# Families whose stacked experts are stored [in, out], and those with gate's and up's rows in turns.
TRANSPOSED = {"gpt_oss", "llama4", "llama4_text", "qwen3_vl_moe"}
IN_TURNS = {"gpt_oss"}
# Families whose linears are published [in, out].
CONV1D = {"gpt2"}
# The order of the eight columns in a word of AutoAWQ's "gemm".
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def write_tokenizer(directory):
    """Single letters and two-letter words, split at white space."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<unk>", *letters, *(first + second for first in letters for second in "ens")][:VOCAB_SIZE]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z][ens]?"}, "behavior": "Removed", "invert": True},
        "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def bits_of(words, bits):
    """The codes in 32-bit words along the last axis, lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    codes = (words.astype(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
    return codes.reshape(*words.shape[:-1], -1)


def dequantize(get, quantization):
    """The weight [out, in] that packed tensors stand for; `get` gives one by its suffix."""
    bits, scales = quantization["bits"], get("scales").astype(np.float32)
    if quantization["quant_method"] == "awq":
        undo = np.argsort(AWQ_ORDER)
        unpack = lambda words: bits_of(words, bits).reshape(*words.shape, 8)[..., undo].reshape(words.shape[0], -1)
        codes, zeros = unpack(get("qweight")), unpack(get("qzeros"))
        groups = np.arange(codes.shape[0]) // (codes.shape[0] // scales.shape[0])
    else:
        codes = bits_of(get("qweight").T, bits).T
        # Version 1 stores each zero point less one.
        zeros = (bits_of(get("qzeros"), bits) + 1) % 2**bits
        groups = get("g_idx")
    zeros = zeros[:, : scales.shape[1]].astype(np.float32)
    # safetensors writes the memory as it lies.
    return np.ascontiguousarray(((codes.astype(np.float32) - zeros[groups]) * scales[groups]).T)


def covered(name, quantization):
    """Whether a reader of `quantization` takes the linear for a quantized one."""
    if quantization["quant_method"] == "awq":
        # As vLLM reads it: a part of the name is enough.
        return not any(dense in name for dense in quantization["modules_to_not_convert"])
    skipped = any(re.match(rule[2:], name) for rule in quantization["dynamic"] or {})
    inside = quantization.get("modules_in_block_to_quantize")
    # As transformers reads it: what the name ends with.
    return not skipped and (not inside or any(f".{name}".endswith(f".{end}") for end in inside[0]))


def stacked(name, shape, tensors, config):
    """A published tensor of all experts from those that Nibble writes for each."""
    match = re.match(r"(.*(?:experts|block_sparse_moe))\.(\w+?)(_bias|\.weight)?$|(.*ffn\.experts)\.mlp\.(\w1|w2)$", name)
    assert match, f"{name} is not written, and no stack either"
    prefix, what = match[1] or match[4], match[2] or match[5]
    suffix = "bias" if match[3] == "_bias" else "weight"
    if what in ("input_linear", "output_linear"):
        prefix, what = f"{prefix}.experts", {"input_linear": "gate_up_proj", "output_linear": "down_proj"}[what]
    model_type = config["model_type"]
    count = len({key.split(".")[prefix.count(".") + 1] for key in tensors if key.startswith(f"{prefix}.")})
    linears = ["gate_proj", "up_proj"] if what == "gate_up_proj" else [what]
    parts = []
    for expert in range(count):
        rows = [tensors.pop(f"{prefix}.{expert}.{linear}.{suffix}") for linear in linears]
        in_turns = model_type in IN_TURNS and len(rows) == 2
        part = np.stack(rows, 1).reshape(-1, *rows[0].shape[1:]) if in_turns else np.concatenate(rows)
        is_transposed = model_type in TRANSPOSED or what == "w2" and model_type == "dbrx"
        if suffix == "weight" and shape[-1] != shape[-2] and len(shape) == 3:
            # Some are published one way and saved the other way.
            is_transposed = part.shape != tuple(shape[1:])
        parts.append(part.T if is_transposed and suffix == "weight" else part)
    return np.ascontiguousarray(np.stack(parts).reshape(shape))


def published(written, shapes, config, quantization):
    """Float tensors under their published names, from those that Nibble wrote; checks what config.json says of them."""
    packed = {key.removesuffix(".qweight") for key in written if key.endswith(".qweight")}
    # Everything up to the layer's number.
    prefix = re.compile(r"^.*?\.\d+\.")
    tensors = {}
    for key, tensor in written.items():
        module, _, suffix = key.rpartition(".")
        if module in packed and suffix in ("qzeros", "scales", "g_idx"):
            continue
        if module in packed and suffix == "qweight":
            assert covered(module, quantization), f"{module} is packed, but config.json excludes it"
            weight = dequantize(lambda suffix: written[f"{module}.{suffix}"], quantization)
            is_conv1d = config["model_type"] in CONV1D
            tensors[f"{module}.weight"] = np.ascontiguousarray(weight.T) if is_conv1d else weight
            continue
        if suffix == "weight" and tensor.ndim == 2 and prefix.match(key) and "norm" not in module:
            assert not covered(module, quantization), f"{module} is in float, but config.json does not exclude it"
        tensors[key] = tensor.astype(np.float32)
    found = {}
    stored = logits.STORED.get(config["model_type"], {})
    for name, shape in shapes.items():
        key = stored.get(name, name)
        found[name] = tensors.pop(key) if key in tensors else stacked(name, shape, tensors, config)
        assert found[name].shape == shape, (name, found[name].shape, shape)
    assert not tensors, f"not in published files: {sorted(tensors)}"
    return found


def without_factors(found, original):
    """`found` with its rows and columns multiplied by what brings it closest to `original`."""
    fit = lambda a, b, axis: (a * b).sum(axis, keepdims=True) / np.maximum((a * a).sum(axis, keepdims=True), 1e-30)
    for _ in range(20):
        found = found * fit(found, original, 0)
        found = found * fit(found, original, 1)
    return found


def hold_against_original(directory, tensors, originals):
    """Vectors are left out with AWQ, which divides norms by what it multiplies columns by; `nibble` itself proves those. GPTQ sets
    columns to zero whose input was zero for every token, as behind a relu: these are left out."""
    whole, of_expert = LIKENESS[directory]
    is_awq = directory.startswith("AWQ")
    for name, original in originals.items():
        found = tensors[name]
        if original.ndim < 2 and is_awq:
            continue
        bound = of_expert if original.ndim == 3 else whole
        pairs = zip(found, original) if original.ndim == 3 else [(found, original)]
        for index, (found, original) in enumerate(pairs):
            if is_awq:
                found = without_factors(found, original)
            elif found.ndim == 2:
                found, original = (np.where(found.any(0), weight, 0) for weight in (found, original))
            difference = np.linalg.norm(found - original) / max(np.linalg.norm(original), 1e-30)
            assert difference < bound, f"{directory}: {name} [{index}] is {difference:.1%} off its original"


def nibble_eval(program, directory, *options):
    command = [program, "eval", directory, "--windows", str(WINDOWS), "--seq-len", str(SEQ_LEN), "--json", "--quiet", *options]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def perplexity(model, windows):
    nll = 0.0
    for ids in torch.tensor(windows).split(1):
        log_p = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        nll -= log_p.gather(1, ids[0, 1:, None]).sum().item()
    return math.exp(nll / (len(windows) * (SEQ_LEN - 1)))


def token_windows(directory, text):
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return [ids[i * SEQ_LEN:(i + 1) * SEQ_LEN] for i in range(WINDOWS)]


def check(program, name, config):
    """Raises where something is wrong; otherwise the largest of the differences."""
    config = config | {"torch_dtype": "bfloat16"}
    for part in (config, config.get("text_config", {})):
        part |= {key: VOCAB_SIZE for key in ("vocab_size", "vocab_size_per_layer_input") if key in part}
    # Placeholders stay outside the vocabulary.
    config |= {key: value + VOCAB_SIZE for key, value in config.items()
               if key.endswith(("_token_id", "_token_index")) and value and value >= logits.LLAMA["vocab_size"]}
    text = "the seven sons never seen in an open den eat bread and honey then sing on an inn's stone " * 4
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        model, reference = pathlib.Path(scratch) / "model", pathlib.Path(scratch) / "reference"
        model_class, shapes = logits.save_as_published(config, reference)
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config))
        write_tokenizer(model)
        (model / "text.txt").write_text(text)
        stored = logits.STORED.get(config["model_type"], {})
        weights = {stored.get(key, key): formula.tensor(stored.get(key, key), shape) for key, shape in shapes.items()}
        from safetensors.torch import save_file as save_torch
        save_torch({key: torch.from_numpy(value).bfloat16() for key, value in weights.items()}, model / "model.safetensors")
        for directory, options in METHODS.items():
            output = pathlib.Path(scratch) / directory
            run = subprocess.run([program, *options, *CALIBRATION, "--output", output, model], stderr=subprocess.PIPE, text=True)
            if run.returncode == 3 and "divisible by 8" in run.stderr and directory.startswith("AWQ"):
                continue
            assert run.returncode == 0, run.stderr
            quantization = json.loads((output / "config.json").read_text())["quantization_config"]
            written = {}
            for shard in output.glob("*.safetensors"):
                written |= {key: value.float().numpy() if value.is_floating_point() else value.numpy()
                            for key, value in load_torch(shard).items()}
            tensors = published(written, shapes, config, quantization)
            originals = {key: weights[stored.get(key, key)] for key in shapes}
            hold_against_original(directory, tensors, originals)
            float_model = pathlib.Path(scratch) / f"{directory}-float"
            float_model.mkdir()
            for file in ("config.json", "tokenizer.json"):
                (float_model / file).write_text((model / file).read_text())
            renamed = {stored.get(key, key): value for key, value in tensors.items()}
            save_file(renamed, float_model / "model.safetensors")
            found = nibble_eval(program, output, "--reference", float_model, "--text", model / "text.txt")
            assert abs(found["kl_divergence"]) < 1e-9, f"{directory}: packed and dequantized differ by {found}"
            loaded = logits.load_with(model_class, reference, tensors)
            expected = perplexity(loaded, token_windows(model, text))
            worst = max(worst, abs(found["perplexity"] / expected - 1))
            assert worst < TOLERANCE, f"{directory}: transformers' perplexity is {expected}, Nibble's {found['perplexity']}"
    return worst


def check_all(title, names, check):
    """Prints what `check` finds of each name, then how many agree, and exits: with 1 where one of them raised."""
    failed = []
    for name in names:
        try:
            print(f"{name}: {check(name)}", flush=True)
        except Exception as error:
            failed.append(name)
            print(f"{name}: FAILED {type(error).__name__} {error}", flush=True)
    print(f"{title}: {len(names) - len(failed)} of {len(names)} configurations agree; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def load_torch(path):
    from safetensors.torch import load_file as load

    return load(path)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", default=ROOT / "target/release/nibble", type=pathlib.Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    firsts = {}
    for name, config in logits.CASES.items():
        firsts.setdefault(config["model_type"], name)
    chosen = args.names or (list(logits.CASES) if args.all else list(firsts.values()))
    check_all("families", chosen, lambda name: f"perplexities differ by {check(args.nibble, name, logits.CASES[name]):.1e}")


if __name__ == "__main__":
    main()
