"""Writes tests/golden/awq_single.safetensors and awq_pair.safetensors: the published AWQ search on small random problems.

Reference: AutoAWQ 0.2.9 (autoawq==0.2.9, torch==2.6.0, transformers==4.51.3, safetensors==0.8.0, Python 3.11, CPU, seed 20260 + case),
its AwqQuantizer._search_best_scale, _search_best_clip, apply_clip and pseudo_quantize_tensor, called as they are but for one
repair: 0.2.9 keeps the weights to restore after each trial with `v.cpu()`, which copies nothing on a CPU.

    python -P tests/golden/generate/awq.py OUT_DIR        (-P: this file must not pass for the package awq)

Each file: `x` [tokens, in] f16, and for linear i of the stage `weight.i` [out, in] f16 (the values that the search saw, as float32),
`scaled.i` = Q(W s)/s and `clipped.i` = Q(clip(W s))/s, float32 [out, in]; `channel_scale` [in] float32. 4 bits, groups of 32.
"""

import inspect
import sys
import textwrap

import awq.quantize.quantizer as reference
import torch
from awq.quantize.scale import apply_clip
from safetensors.torch import save_file

# Fewer than 1024 tokens: the clip search then looks at every one of them.
TOKENS, IN, OUT, GROUP = 128, 64, 64, 32


class Stage(torch.nn.Module):
    """Linears that share an input; its output is all of theirs."""

    def __init__(self, weights):
        super().__init__()
        self.names = [f"linear{i}" for i in range(len(weights))]
        for name, weight in zip(self.names, weights):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
            setattr(self, name, linear)

    def linears(self):
        return {name: getattr(self, name) for name in self.names}

    def forward(self, x):
        return torch.cat([linear(x) for linear in self.linears().values()], dim=-1)


class Layer(torch.nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.norm = torch.nn.LayerNorm(IN)
        self.stage = stage


def repaired_quantizer():
    cls = reference.AwqQuantizer
    source = textwrap.dedent(inspect.getsource(cls._compute_best_scale))
    assert "k: v.cpu()" in source
    exec(source.replace("k: v.cpu()", "k: v.clone()"), reference.__dict__)
    cls._compute_best_scale = reference.__dict__["_compute_best_scale"]
    quantizer = cls.__new__(cls)
    quantizer.w_bit, quantizer.group_size, quantizer.zero_point, quantizer.duo_scaling = 4, GROUP, True, True
    quantizer.max_chunk_memory, quantizer.n_parallel_calib_samples = 1 << 30, None
    return quantizer


def problem(case, n_linears):
    torch.manual_seed(20260 + case)
    mixing = torch.eye(IN) + 0.3 * torch.randn(IN, IN) / IN**0.5
    size = torch.exp(0.7 * torch.randn(IN))
    size[torch.randperm(IN)[:3]] *= torch.tensor([30.0, 12.0, 8.0])
    x = (torch.randn(TOKENS, IN) @ mixing * size).half()
    weights = [(0.05 * torch.randn(OUT, IN) * (1 + (torch.rand(OUT, IN) > 0.98) * 3)).half() for _ in range(n_linears)]
    return x, weights


@torch.no_grad()
def main(out_dir):
    quantizer = repaired_quantizer()
    for case, (name, n_linears) in enumerate([("single", 1), ("pair", 2)]):
        x, weights = problem(case, n_linears)
        stage = Stage([weight.float() for weight in weights])
        layer = Layer(stage)
        _, _, scale = quantizer._search_best_scale(
            layer, layer.norm, list(stage.linears().values()), x.float(), module2inspect=stage
        )
        tensors = {"x": x, "channel_scale": scale}
        for i, (linear, weight) in enumerate(zip(stage.linears().values(), weights)):
            assert torch.equal(linear.weight, weight.float()), "the search did not restore the weights"
            linear.weight.mul_(scale)
            tensors[f"weight.{i}"] = weight
            tensors[f"scaled.{i}"] = quantizer.pseudo_quantize_tensor(linear.weight)[0] / scale
        features = {name: x.float() / scale for name in stage.linears()}
        apply_clip(stage, quantizer._search_best_clip(stage, stage.linears(), features))
        for i, linear in enumerate(stage.linears().values()):
            tensors[f"clipped.{i}"] = quantizer.pseudo_quantize_tensor(linear.weight)[0] / scale
        save_file({k: v.contiguous() for k, v in tensors.items()}, f"{out_dir}/awq_{name}.safetensors")

        gram = (x.double().T @ x.double()) / TOKENS
        for kind in ("scaled", "clipped"):
            loss = sum(torch.trace(d @ gram @ d.T).item() for d in (tensors[f"{kind}.{i}"].double() - w.double() for i, w in enumerate(weights)))
            print(name, kind, loss)


if __name__ == "__main__":
    main(sys.argv[1])
