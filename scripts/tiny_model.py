#!/usr/bin/env python3
"""A Llama model of 0.2 M random parameters with a tokenizer of bytes, to try whether `nibble` runs. Needs nothing but Python.

usage: tiny_model.py DIRECTORY
"""
import json
import pathlib
import random
import struct
import sys

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048, "vocab_size": 257, "tie_word_embeddings": True,
}


def shapes():
    wide, narrow, hidden = CONFIG["intermediate_size"], 32, CONFIG["hidden_size"]
    yield "model.embed_tokens.weight", [CONFIG["vocab_size"], hidden]
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", [hidden]
        for linear, rows in (("q_proj", hidden), ("k_proj", narrow), ("v_proj", narrow), ("o_proj", hidden)):
            yield f"{prefix}.self_attn.{linear}.weight", [rows, hidden]
        yield f"{prefix}.mlp.gate_proj.weight", [wide, hidden]
        yield f"{prefix}.mlp.up_proj.weight", [wide, hidden]
        yield f"{prefix}.mlp.down_proj.weight", [hidden, wide]
    yield "model.norm.weight", [hidden]


def bfloat16(value):
    return struct.pack("<f", value)[2:]


def main():
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    source, header, data = random.Random(0), {}, bytearray()
    for name, shape in shapes():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        start = len(data)
        one = "norm" in name
        data += b"".join(bfloat16(1.0 if one else source.gauss(0, 0.1)) for _ in range(count))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    # The characters that byte-level tokenizers write bytes as.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        characters.setdefault(byte, chr(256 + len(characters) - len(printable)))
    vocabulary = {characters[byte]: byte + 1 for byte in range(256)} | {"<unk>": 0}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": []},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


if __name__ == "__main__":
    main()
