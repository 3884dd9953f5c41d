"""Golden files of src/pack: what the peers' own packers make of known codes, scales and zero points.

    python pack.py awq  ../pack_awq.safetensors     # autoawq 0.2.9, torch 2.6.0, CPU
    python pack.py gptq ../pack_gptq.safetensors    # gptqmodel 7.7.0, torch 2.15.0, CPU

AWQ: `WQLinear_GEMM.from_linear`. GPTQ: `TorchLinear.pack_original`, which makes v2 zero points ("qzeros_v2"), then
`convert_gptq_v2_to_v1_format_module`, as GPTQModel does when it saves ("qzeros_v1"). The packers take float weights:
they get (code - zero point) * scale, which float32 holds exactly, so that the codes they find are the codes given here.

Every case "NAME" is NAME.codes [out, in] u8, NAME.scales [out, groups] f16, NAME.zeros [out, groups] u8,
NAME.settings [bits, group_size, symmetric] i64 and the packed tensors; seed 0 for all.
"""

import sys

import numpy as np
import torch
from safetensors.torch import save_file


def layer(generator, bits, group_size, symmetric, out_features, in_features, min_zero=0):
    """Codes, scales, zero points and the linear layer that they stand for."""
    columns = in_features if group_size == -1 else group_size
    groups = -(-in_features // columns)
    codes = torch.from_numpy(generator.integers(0, 2**bits, (out_features, in_features), dtype=np.uint8))
    scales = torch.from_numpy(generator.uniform(0.001, 0.1, (out_features, groups))).half()
    if symmetric:
        zeros = torch.full((out_features, groups), 2 ** (bits - 1), dtype=torch.uint8)
    else:
        zeros = torch.from_numpy(generator.integers(min_zero, 2**bits, (out_features, groups), dtype=np.uint8))
    of_column = torch.arange(in_features) // columns
    weight = (codes.float() - zeros.float()[:, of_column]) * scales.float()[:, of_column]
    linear = torch.nn.Linear(in_features, out_features, bias=False)
    linear.weight.data = weight
    return codes, scales, zeros, linear


def case(tensors, name, codes, scales, zeros, settings, packed):
    tensors[f"{name}.codes"] = codes
    tensors[f"{name}.scales"] = scales
    tensors[f"{name}.zeros"] = zeros
    tensors[f"{name}.settings"] = torch.tensor(settings, dtype=torch.int64)
    for suffix, tensor in packed.items():
        tensors[f"{name}.packed.{suffix}"] = tensor.contiguous()


def awq():
    from awq.modules.linear.gemm import WQLinear_GEMM

    generator = np.random.default_rng(0)
    tensors = {}
    for group_size, out_features, in_features in [(32, 64, 96), (16, 32, 80), (-1, 32, 64)]:
        codes, scales, zeros, linear = layer(generator, 4, group_size, False, out_features, in_features)
        columns = in_features if group_size == -1 else group_size
        packed = WQLinear_GEMM.from_linear(
            linear, 4, columns, scales=scales.float().t().contiguous(), zeros=zeros.float().t().contiguous()
        )
        names = ["qweight", "qzeros", "scales"]
        case(
            tensors, f"g{group_size}", codes, scales, zeros, [4, group_size, 0], {n: getattr(packed, n) for n in names}
        )
    return tensors


def gptq():
    from types import SimpleNamespace

    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    generator = np.random.default_rng(0)
    tensors = {}
    # (name, bits, group size, symmetric, smallest zero point, columns in random groups)
    cases = [(f"w{bits}_sym", bits, 32, True, 0, False) for bits in (2, 3, 4, 8)]
    cases += [(f"w{bits}_asym", bits, 32, False, 1, False) for bits in (2, 3, 4, 8)]
    cases += [(f"w{bits}_zero0", bits, 32, False, 0, False) for bits in (2, 3, 4, 8)]
    cases += [("w4_row", 4, -1, True, 0, False), ("w4_desc_act", 4, 32, True, 0, True)]
    for name, bits, group_size, symmetric, min_zero, desc_act in cases:
        out_features, in_features = 32, 96
        codes, scales, zeros, linear = layer(generator, bits, group_size, symmetric, out_features, in_features, min_zero)
        columns = in_features if group_size == -1 else group_size
        g_idx = torch.arange(in_features, dtype=torch.int32) // columns
        if desc_act:
            order = torch.from_numpy(generator.permutation(in_features))
            g_idx = g_idx[order]
            of_column = g_idx.long()
            linear.weight.data = (codes.float() - zeros.float()[:, of_column]) * scales.float()[:, of_column]
        packed = TorchLinear(
            bits=bits, group_size=group_size, sym=symmetric, desc_act=desc_act,
            in_features=in_features, out_features=out_features, bias=False, pack_dtype=torch.int32,
        )  # fmt: skip
        packed.pack_original(linear, scales.float(), zeros.float(), g_idx=g_idx)
        v2 = packed.qzeros.clone()
        convert_gptq_v2_to_v1_format_module(packed, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        case(
            tensors, name, codes, scales, zeros, [bits, group_size, int(symmetric)],
            {"qweight": packed.qweight, "qzeros_v1": packed.qzeros, "qzeros_v2": v2,
             "scales": packed.scales, "g_idx": packed.g_idx},
        )  # fmt: skip
    return tensors


if __name__ == "__main__":
    which, path = sys.argv[1:]
    save_file({"awq": awq, "gptq": gptq}[which](), path)
