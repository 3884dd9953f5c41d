#!/usr/bin/env python3
"""Golden files for the GPTQ solver: gptq_in64.safetensors and gptq_in192.safetensors.

usage: gptq.py OUT_DIR [GAR_PY]      (needs: pip, torch==2.13.0, safetensors==0.8.0; CPU; seed 0)

The reference is auto-gptq 0.7.1 (`quantization/gptq.py` and `quantizer.py`, which is IST-DASLab's script made into a
class), taken from its wheel on PyPI and loaded by path, unchanged. Two things that do no arithmetic are replaced:
`transformers`, asked only for a class to compare with, and `torch.cuda.synchronize`. The group-aware order
(arXiv:2505.14638) is not in it: there the reference solves the permuted problem. GAR_PY, the path of GPTQModel 7.7.0's
`quantization/gar.py`, checks that order against theirs.

Each case is run twice:
- as published (blocks of 128 columns, float32 scales): its loss is the one to beat;
- with scales rounded to float16 before they are used, and with blocks as wide as a group where groups are fitted on
  the way, so that a group's scale sees all updates. That is the arithmetic which the solver promises.

For each input width `in`: x [tokens, in] and weight [out, in], bfloat16. For each case, named as in CASES:
codes u8 [out, in], scales f16 and zeros u8 [out, groups], g_idx i32 [in] (desc_act only), and losses f64 [2], the mean
over tokens of the squared output error: as published, and of the second run. The settings are in the metadata, as JSON.
"""
import importlib.util
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import types
import zipfile

import torch
from safetensors.torch import save_file

WHEEL = "auto-gptq==0.7.1"
# name: bits, group size, symmetric, act order, damp
CASES = {
    "b2_g32_asym": (2, 32, False, "none", 0.01),
    "b3_row_sym": (3, -1, True, "none", 0.01),
    "b3_g64_asym_desc": (3, 64, False, "desc_act", 0.01),
    "b4_row_sym": (4, -1, True, "none", 0.01),
    "b4_row_asym_desc": (4, -1, False, "desc_act", 0.05),
    "b4_g32_sym": (4, 32, True, "none", 0.01),
    "b4_g64_asym": (4, 64, False, "none", 0.05),
    "b4_g32_sym_static": (4, 32, True, "static", 0.01),
    "b4_g64_asym_static": (4, 64, False, "static", 0.01),
    "b4_g32_sym_desc": (4, 32, True, "desc_act", 0.01),
    "b4_g32_sym_gar": (4, 32, True, "group_aware", 0.01),
    "b8_g32_sym": (8, 32, True, "none", 0.01),
    "b8_row_asym_static": (8, -1, False, "static", 0.01),
}
# in features: tokens, out features. 96 tokens for 192 columns make a rank-deficient problem, as a rarely used expert has it.
SHAPES = {64: (256, 40), 192: (96, 16)}


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def reference():
    """auto-gptq's GPTQ and Quantizer, without the package around them."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64"]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", *wheel, "-d", folder, WHEEL], check=True)
        with zipfile.ZipFile(next(pathlib.Path(folder).glob("*.whl"))) as archive:
            for name in ("quantizer.py", "gptq.py"):
                pathlib.Path(folder, name).write_bytes(archive.read(f"auto_gptq/quantization/{name}"))
        no_conv1d = types.ModuleType("transformers")
        no_conv1d.Conv1D = type("Conv1D", (), {})
        no_conv1d.pytorch_utils = no_conv1d
        sys.modules["transformers"] = no_conv1d
        torch.cuda.synchronize = lambda: None
        package = types.ModuleType("reference")
        package.__path__ = [folder]
        sys.modules["reference"] = package
        quantizer = load("reference.quantizer", f"{folder}/quantizer.py")
        return load("reference.gptq", f"{folder}/gptq.py").GPTQ, quantizer.Quantizer


GPTQ, Quantizer = reference()


class HalfQuantizer(Quantizer):
    """The reference's grid with its scale rounded to float16, as it will be stored, before anything is rounded with it."""

    def find_params(self, x, weight=False):
        super().find_params(x, weight=weight)
        self.scale = self.scale.half().float()
        if not self.sym:
            low = torch.clamp(x.amin(1, keepdim=True), max=0)
            self.zero = torch.clamp(torch.round(-low / self.scale), max=self.maxq)


def group_aware(diagonal, group_size, check):
    """Groups by their largest diagonal entry, inside each its columns by theirs, all falling."""
    inside = torch.sort(diagonal.view(-1, group_size), dim=1, descending=True)
    groups = torch.argsort(inside.values[:, 0], descending=True)
    order = (inside.indices + torch.arange(len(groups))[:, None] * group_size)[groups].flatten()
    if check:
        local, values = check.compute_local_perms(diagonal, group_size, return_values=True)
        theirs = check.compute_global_perm(diagonal, group_size, precomputed_values=values)
        assert torch.equal(order, check.compose_final_perm(local, theirs, group_size))
    return order


def run(weight, x, case, quantizer, blocksize, check):
    bits, group_size, symmetric, act_order, damp = case
    order = torch.arange(x.shape[1])
    if act_order == "group_aware":
        order = group_aware(x.square().sum(0), group_size, check)
    linear = torch.nn.Linear(x.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight[:, order].clone()
    solver = GPTQ(linear)
    solver.quantizer = quantizer()
    solver.quantizer.configure(bits, perchannel=True, sym=symmetric, mse=False)
    solver.add_batch(x[:, order], None)
    # Static groups of a whole row are a whole row.
    scales, zeros, g_idx = solver.fasterquant(
        blocksize=blocksize, percdamp=damp, group_size=group_size, actorder=act_order in ("desc_act", "static"),
        static_groups=act_order == "static" and group_size > 0,
    )
    back = torch.argsort(order)
    found = linear.weight.data[:, back]
    g_idx = g_idx.long()[back]
    # Codes of the permuted problem count groups in its order; a group-aware file stores them in the weight's.
    if act_order == "group_aware":
        groups = order[::group_size] // group_size
        scales, zeros = scales[:, torch.argsort(groups)], zeros[:, torch.argsort(groups)]
        g_idx = groups[g_idx]
    codes = torch.round(found / scales[:, g_idx]) + zeros[:, g_idx]
    assert torch.allclose((codes - zeros[:, g_idx]) * scales[:, g_idx], found, rtol=1e-5, atol=1e-7)
    assert codes.min() >= 0 and codes.max() < 2**bits
    loss = (x.double() @ (found - weight).double().T).square().sum() / x.shape[0]
    return codes, scales, zeros, g_idx, loss


def main():
    out_dir = pathlib.Path(sys.argv[1])
    check = None
    if len(sys.argv) > 2:
        logger = types.ModuleType("gptqmodel.utils")
        logger.setup_logger = logging.getLogger
        sys.modules["gptqmodel"] = types.ModuleType("gptqmodel")
        sys.modules["gptqmodel.utils"] = logger
        check = load("gar", sys.argv[2])
    torch.manual_seed(0)
    for width, (tokens, out_features) in SHAPES.items():
        # Correlated columns with a few of large variance, as a norm's output has them.
        mix = torch.randn(width, width) / width**0.5 + torch.eye(width)
        spread = torch.exp(0.8 * torch.randn(width))
        spread[torch.randperm(width)[:3]] *= 10
        x = (torch.randn(tokens, width) @ mix * spread).bfloat16()
        weight = (0.04 * torch.randn(out_features, width) * torch.exp(0.3 * torch.randn(out_features, 1))).bfloat16()
        tensors = {"x": x, "weight": weight}
        settings = {}
        for name, case in CASES.items():
            bits, group_size, symmetric, act_order, damp = case
            blocksize = group_size if group_size > 0 and act_order != "static" else 128
            published = run(weight.float(), x.float(), case, Quantizer, 128, check)
            codes, scales, zeros, g_idx, loss = run(weight.float(), x.float(), case, HalfQuantizer, blocksize, check)
            assert torch.equal(scales, scales.half().float())
            tensors |= {
                f"{name}.codes": codes.to(torch.uint8), f"{name}.scales": scales.half(), f"{name}.zeros": zeros.to(torch.uint8),
                f"{name}.losses": torch.stack([published[-1], loss]),
            }
            if act_order == "desc_act":
                tensors[f"{name}.g_idx"] = g_idx.to(torch.int32)
            settings[name] = json.dumps(dict(bits=bits, group_size=group_size, symmetric=symmetric, act_order=act_order, damp=damp))
            print(width, name, f"published {published[-1]:.6g}, float16 scales and full updates {loss:.6g}")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out_dir / f"gptq_in{width}.safetensors", settings)


if __name__ == "__main__":
    main()
