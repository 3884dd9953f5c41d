#!/usr/bin/env python3
"""Write a Llama or, with --experts, a Qwen 3 MoE checkpoint of random weights, of any size, to measure memory and speed with.

usage: synthetic.py OUT_DIR [--hidden 1024] [--layers 32] [--vocab 4096] [--tokenizer-from DIR] ...   (needs numpy)

Weights are written one tensor at a time, so a checkpoint may be larger than memory. With --tokenizer-from the byte-level
BPE tokenizer of that directory is written too, cut to the first --vocab tokens. The same options and seed give the same
bytes with the same numpy.
"""
import argparse
import json
import pathlib

import numpy as np

import bf16_safetensors


def shapes(args):
    hidden, kv = args.hidden, args.kv_heads * args.head_dim
    layer = {
        "input_layernorm": (hidden,), "self_attn.q_proj": (args.heads * args.head_dim, hidden),
        "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, args.heads * args.head_dim), "post_attention_layernorm": (hidden,),
    }
    mlps = ["mlp"]
    if args.experts:
        mlps = [f"mlp.experts.{expert}" for expert in range(args.experts)]
        layer |= {"self_attn.q_norm": (args.head_dim,), "self_attn.k_norm": (args.head_dim,)}
        layer["mlp.gate"] = (args.experts, hidden)
    for mlp in mlps:
        layer |= {
            f"{mlp}.gate_proj": (args.intermediate, hidden), f"{mlp}.up_proj": (args.intermediate, hidden),
            f"{mlp}.down_proj": (hidden, args.intermediate),
        }
    tensors = {"model.embed_tokens.weight": (args.vocab, hidden)}
    for i in range(args.layers):
        tensors |= {f"model.layers.{i}.{part}.weight": shape for part, shape in layer.items()}
    return tensors | {"model.norm.weight": (hidden,)}


def config(args):
    experts = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": args.experts,
        "num_experts_per_tok": args.top_k, "moe_intermediate_size": args.intermediate, "norm_topk_prob": True,
    }
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": args.hidden, "intermediate_size": args.intermediate, "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads, "num_key_value_heads": args.kv_heads, "head_dim": args.head_dim,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 8192, "vocab_size": args.vocab,
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    } | (experts if args.experts else {})


def cut_tokenizer(tokenizer, n_tokens):
    """The same BPE with its first tokens only: later merges go, so text becomes more tokens, all of them known."""
    model = tokenizer["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < n_tokens}
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    model["merges"] = [pair for pair in pairs if all(token in model["vocab"] for token in (*pair, "".join(pair)))]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < n_tokens]
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--heads", type=int, help="default: hidden / head-dim")
    parser.add_argument("--kv-heads", type=int, help="default: a quarter of the heads")
    parser.add_argument("--intermediate", type=int, help="default: 8/3 of hidden, up to a multiple of 256")
    parser.add_argument("--experts", type=int, default=0, help="in each layer, as wide as --intermediate says")
    parser.add_argument("--top-k", type=int, default=8, help="experts that a token goes through")
    parser.add_argument("--tokenizer-from", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.heads = args.heads or args.hidden // args.head_dim
    args.kv_heads = args.kv_heads or max(1, args.heads // 4)
    args.intermediate = args.intermediate or -(-args.hidden * 8 // 3 // 256) * 256

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config(args), indent=2) + "\n")
    if args.tokenizer_from:
        source = json.loads((args.tokenizer_from / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer = cut_tokenizer(source, args.vocab)
        (args.out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        (args.out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")
    random = np.random.default_rng(args.seed)
    tensors = shapes(args)

    def values(name):
        shape = tensors[name]
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        return random.standard_normal(shape, np.float32) * np.float32(0.02)

    bf16_safetensors.write(args.out / "model.safetensors", tensors, values)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"synthetic: wrote {args.out}: {args.layers} layers of hidden size {args.hidden}, {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
