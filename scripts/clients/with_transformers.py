"""Perplexity of a model directory by transformers on the CPU; GPTQ and AWQ run on GPTQModel's kernels."""
import collections
import math
import os

# The 8-bit kernel compiles each linear's dequantization at its first call: minutes of compiling for seconds of work.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers import AutoTokenizer

import windows

# With its default attention, text's tokens see later ones in 5.23: no mask is made, and the layers are not marked as causal.
EAGER = ("paligemma",)


@torch.inference_mode()
def main():
    args = windows.parse_arguments(__doc__)
    # bfloat16, because the 4-bit kernel takes 70 times as long with the file's own float16.
    config = AutoConfig.from_pretrained(args.directory)
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    attention = {"attn_implementation": "eager"} if config.model_type in EAGER else {}
    model, loading = auto.from_pretrained(
        args.directory, device_map="cpu", dtype=torch.bfloat16, output_loading_info=True, **attention)
    wrong = {key: loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading[key]}
    assert not wrong, wrong
    kinds = collections.Counter(type(module).__name__ for module in model.eval().modules() if "Linear" in type(module).__name__)
    nll, n_tokens = 0.0, 0
    for ids in windows.token_windows(args.directory, args.text, args.windows, args.seq_len):
        ids = torch.tensor([ids])
        log_p = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        nll -= log_p.gather(1, ids[0, 1:, None]).sum().item()
        n_tokens += len(ids[0]) - 1
    tokenizer = AutoTokenizer.from_pretrained(args.directory)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    continued = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    windows.print_result(perplexity=math.exp(nll / n_tokens), kernel=", ".join(f"{n} {kind}" for kind, n in kinds.items()),
                         text=tokenizer.decode(continued))


if __name__ == "__main__":
    main()
