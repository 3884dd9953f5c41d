"""Perplexity of a model directory by GPTQModel's own loader on the CPU."""
import collections
import math
import os

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from gptqmodel import GPTQModel

import windows


@torch.inference_mode()
def main():
    args = windows.parse_arguments(__doc__)
    model = GPTQModel.load(args.directory, device="cpu", dtype=torch.bfloat16).model.eval()
    kinds = collections.Counter(type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__)
    nll, n_tokens = 0.0, 0
    for ids in windows.token_windows(args.directory, args.text, args.windows, args.seq_len):
        ids = torch.tensor([ids])
        log_p = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].double().log_softmax(-1)
        nll -= log_p.gather(1, ids[0, 1:, None]).sum().item()
        n_tokens += len(ids[0]) - 1
    windows.print_result(perplexity=math.exp(nll / n_tokens), kernel=", ".join(f"{n} {kind}" for kind, n in kinds.items()), text="")


if __name__ == "__main__":
    main()
