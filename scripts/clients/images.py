"""What Nibble makes of models that see, held against transformers on prompts with images: each tiny model of seeing.py is quantized by
both methods with images, dequantized by families.py's code, and

- `nibble eval` must find no difference between the packed directory and the dequantized one on a prompt with two images,
- transformers, with its own processor, must read as many tokens in that prompt, and find the perplexity of its words that Nibble finds.

usage: images.py [--nibble PROGRAM] [NAME ...]      (in the environment of scripts/requirements/transformers.txt)
"""
import argparse
import json
import math
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file

import families
import seeing

TOLERANCE = 1e-4
# Calls a picture what the processor replaces, where that is not the token that stands for its vectors.
PLACEHOLDERS = {"gemma3": "<start_of_image>"}
BETWEEN = ["the seven sons see ", " in an open den ", " then sing on an inn s stone"]
CALIBRATION = ["--group-size", "32", "--num-samples", "8", "--quiet", "--overwrite"]
# Tokens of a window, where two images are more than 256.
SEQ_LEN = {"phi4_multimodal": 1280}
# Packed linears of two layers, where some are stored as one.
FUSED = {"phi4_multimodal": 8}


def draw(path, width, height, seed):
    """Blocks and a slope, so that rows, columns and colours all matter."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 200, (5, 7, 3), np.uint8)
    image = np.asarray(Image.fromarray(blocks).resize((width, height), Image.NEAREST)).astype(int)
    slope = np.linspace(0, 55, width * height).reshape(height, width, 1)
    Image.fromarray((image + slope).astype(np.uint8)).save(path)


def conversation(images):
    content = []
    for text, image in zip(BETWEEN, [*images, None]):
        content.append({"type": "text", "text": text})
        if image:
            content.append({"type": "image", "image": image})
    return json.dumps({"messages": [{"role": "user", "content": content}]}) + "\n"


def tensors_of(directory):
    written = {}
    for shard in directory.glob("*.safetensors"):
        written |= {key: value.float().numpy() if value.is_floating_point() else value.numpy()
                    for key, value in load_file(shard).items()}
    return written


def dequantized(output, model, float_model):
    """A copy of `model` with the numbers of `output`; how many linears were packed."""
    written, original = tensors_of(output), tensors_of(model)
    quantization = json.loads((output / "config.json").read_text())["quantization_config"]
    packed = [key.removesuffix(".qweight") for key in written if key.endswith(".qweight")]
    for name in packed:
        weight = families.dequantize(lambda suffix: written[f"{name}.{suffix}"], quantization)
        for suffix in ("qweight", "qzeros", "scales", "g_idx"):
            written.pop(f"{name}.{suffix}", None)
        written[f"{name}.weight"] = weight
    config = json.loads((model / "config.json").read_text())
    found = {}
    for name, tensor in original.items():
        found[name] = written.pop(name) if name in written else families.stacked(name, tensor.shape, written, config)
    assert not written, f"not in the original: {sorted(written)}"
    shutil.copytree(model, float_model)
    save_file(found, float_model / "model.safetensors", {"format": "pt"})
    return len(packed)


def prompt(name, directory, images):
    """The prompt as transformers' processor writes it, and its images."""
    processor = transformers.AutoProcessor.from_pretrained(directory)
    placeholder = PLACEHOLDERS.get(name, seeing.PROCESSORS[name][-1])
    images = [Image.open(directory.parent / image).convert("RGB") for image in images]
    # It cuts no tiles from images that come together in one list; Nibble cuts them from each.
    images = images if name == "llava_onevision" else [images]
    return processor(text=[placeholder.join(BETWEEN)], images=images, return_tensors="pt", padding=False)


def perplexity(directory, inputs, image_token):
    config = json.loads((directory / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    targets = inputs["input_ids"][0, 1:]
    log_p = model(**inputs, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    is_text = targets != image_token
    return math.exp(-log_p.gather(1, targets[:, None])[is_text].mean().item())


def check(program, name):
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        model = scratch / "model"
        model.mkdir()
        seeing.make(name, model, False)
        placeholder = PLACEHOLDERS.get(name, seeing.PROCESSORS[name][-1])
        part = "{% if part.type == 'image' %}" + placeholder + "{% else %}{{ part.text }}{% endif %}"
        template = "{% for message in messages %}{% for part in message.content %}" + part + "{% endfor %}{% endfor %}"
        (model / "chat_template.jinja").write_text(template)
        for number in range(24):
            draw(scratch / f"{number}.png", 40 + 7 * number, 150 - 5 * number, number)
        (scratch / "many.jsonl").write_text("".join(conversation([f"{n}.png", f"{n + 1}.png"]) for n in range(2, 23)))
        (scratch / "one.jsonl").write_text(conversation(["0.png", "1.png"]))
        inputs = prompt(name, model, ["0.png", "1.png"])
        n_tokens = inputs["input_ids"].shape[1]
        worst = 0.0
        for method, directory in (("--awq", "AWQ-4bit"), ("--gptq", "GPTQ-8bit")):
            output, float_model = scratch / directory, scratch / f"{directory}-float"
            seq_len = str(SEQ_LEN.get(name, 256))
            data = ["--seq-len", seq_len, "--calib-data", scratch / "many.jsonl"]
            command = [program, method, *CALIBRATION, *data, "--output", output, model]
            run = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            assert run.returncode == 0, run.stderr
            assert dequantized(output, model, float_model) >= FUSED.get(name, 12)
            command = [program, "eval", output, "--reference", float_model, "--text", scratch / "one.jsonl", "--windows", "1",
                       "--seq-len", str(n_tokens), "--json", "--quiet"]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            assert found["images"] == 2, found
            assert abs(found["kl_divergence"]) < 1e-9, f"{directory}: packed and dequantized differ by {found}"
            image_token = seeing.VOCABULARY[seeing.PROCESSORS[name][-1]]
            expected = perplexity(float_model, inputs, image_token)
            worst = max(worst, abs(found["perplexity"] / expected - 1))
            assert worst < TOLERANCE, f"{directory}: transformers' perplexity is {expected}, Nibble's {found['perplexity']}"
        return f"{n_tokens} tokens, perplexities differ by {worst:.1e}"


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nibble", default=families.ROOT / "target/release/nibble", type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    # PaliGemma's processor puts images before words, and its words see later ones of their prompt, which windows do not know.
    chosen = args.names or [name for name in seeing.CHANGES if not name.startswith("paligemma")]
    families.check_all("images", chosen, lambda name: check(args.nibble, name))


if __name__ == "__main__":
    main()
