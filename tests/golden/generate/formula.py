"""Weights and token ids by formula: the same numbers as src/model/formula.rs, bit for bit in float32.

Value i of a tensor is `centre + width * (2 u - 1)`, where u = (hash(fnv1a(name) + i * 0x9E3779B9) >> 8) / 2^24.
"""
import numpy as np


def fnv1a(name):
    state = 0x811C9DC5
    for byte in name.encode():
        state = ((state ^ byte) * 0x01000193) & 0xFFFFFFFF
    return state


def mix(x):
    """The finalizer of MurmurHash3, 32 bit."""
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def hashes(name, count):
    seed = np.uint64(fnv1a(name))
    return mix((seed + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF))


def tensor(name, shape):
    """Norms and factors lie around 1, biases within a half, what corrects a choice of experts within a tenth, bounds around
    -1 and 1, embeddings within 1, other matrices within 2 / sqrt(columns)."""
    *modules, last = name.split(".")
    module = modules[-1] if modules else ""
    centre, width = np.float32(0), np.float32(1)
    is_norm = "norm" in module or module.startswith("ln_")
    if last == "weight" and is_norm or last in ("scale", "per_expert_scale", "layer_scalar"):
        centre, width = np.float32(1), np.float32(0.5)
    elif last.endswith(("_min", "_max")):
        centre, width = np.float32(-1 if last.endswith("_min") else 1), np.float32(0.5)
    elif last == "bias":
        width = np.float32(0.5)
    elif last in ("e_score_correction_bias", "expert_bias"):
        width = np.float32(0.1)
    elif not name.endswith(("embed_tokens.weight", "embed_in.weight")):
        width = np.float32(2) / np.sqrt(np.float32(shape[-1] if shape else 1))
    unit = (hashes(name, int(np.prod(shape))) >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)
    return (centre + width * (np.float32(2) * unit - np.float32(1))).reshape(shape)


def token_ids(name, count, vocab_size):
    return (hashes(name, count) % np.uint32(vocab_size)).astype(np.int64)
