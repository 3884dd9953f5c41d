"""Writes a safetensors file of bfloat16 tensors one tensor at a time, so that its size is not bound by memory."""
import json
import math
import os

import numpy as np


def bf16_bits(values):
    """float32 values rounded to the nearest bfloat16 (ties to even), as uint16; values must be finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write(path, shapes, values):
    """Write `path` with the tensors of `shapes` (name -> shape), in that order; `values(name)` gives each as float32.

    The file appears under its name only when it is complete.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in shapes.items():
            value = values(name)
            assert value.shape == tuple(shape), f"{name}: made {value.shape}, announced {tuple(shape)}"
            file.write(bf16_bits(value).data)
    os.replace(partial, path)
