"""Logits of tiny models with weights by formula (formula.py), as transformers computes them in float32.

    python logits.py                 writes ../logits.safetensors
    python logits.py MODEL_DIR       writes ../logits_smollm2.safetensors from SmolLM2-135M-Instruct

Made with Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6; eager attention.
There is no seed: every number is a hash of its name and index.
"""
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import formula

OUT = pathlib.Path(__file__).resolve().parent.parent
BATCH, TOKENS = 2, 24
POSITIONS = list(range(2, TOKENS, 3))

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 48,
    "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
}
MISTRAL = LLAMA | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_key_value_heads": 1}
QWEN2 = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 3}
QWEN3 = LLAMA | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 20}

CASES = {
    "llama_tied": LLAMA | {"tie_word_embeddings": True, "num_hidden_layers": 3},
    "llama_old_defaults": {
        key: value for key, value in LLAMA.items()
        if key not in ("num_key_value_heads", "rope_theta", "hidden_act", "rms_norm_eps")
    },
    "llama_biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"},
    "llama_head_dim": LLAMA | {"head_dim": 22, "num_attention_heads": 6, "num_key_value_heads": 3, "hidden_act": "gelu"},
    "llama_rope_linear": LLAMA | {
        "rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.5}, "hidden_act": "relu",
    },
    "llama_rope_dynamic": LLAMA | {"max_position_embeddings": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
    "llama_rope_llama3": LLAMA | {
        "head_dim": 16, "rope_theta": 500.0, "max_position_embeddings": 512,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama_rope_yarn": LLAMA | {
        "head_dim": 32, "max_position_embeddings": 1024,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    },
    "llama_rope_parameters_yarn": {key: value for key, value in LLAMA.items() if key != "rope_theta"} | {
        "head_dim": 32, "max_position_embeddings": 768,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 800.0, "factor": 6.0, "original_max_position_embeddings": 128, "beta_fast": 8.0,
            "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False,
        },
    },
    "llama_rope_parameters_factor": {key: value for key, value in LLAMA.items() if key != "rope_theta"} | {
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.2},
    },
    "mistral_window": MISTRAL | {"sliding_window": 7},
    "mistral_no_window": MISTRAL | {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2_window_off": QWEN2 | {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0},
    "qwen2_max_window_layers": QWEN2 | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen2_layer_types": QWEN2 | {
        "use_sliding_window": True, "sliding_window": 6, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3_tied": QWEN3 | {"tie_word_embeddings": True},
    "qwen3_biases_window": QWEN3 | {
        "attention_bias": True, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1,
    },
}


def tiny_logits(name, config):
    # from_dict takes what it is given to pieces.
    typed = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    model = AutoModelForCausalLM.from_config(typed, attn_implementation="eager", dtype=torch.float32).eval()
    state = {
        key: torch.from_numpy(formula.tensor(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
        if not (key == "lm_head.weight" and config.get("tie_word_embeddings"))
    }
    missing = model.load_state_dict(state, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys, missing
    ids = formula.token_ids(name, BATCH * TOKENS, config["vocab_size"]).reshape(BATCH, TOKENS)
    logits = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    print(f"{name}: max |logit| {np.abs(logits).max():.3f}, std {logits.std():.3f}")
    return logits[:, POSITIONS].copy()


def smollm2_logits(directory):
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
    vocab_size = model.config.vocab_size
    ids = formula.token_ids("smollm2", 64, vocab_size)
    columns = formula.token_ids("smollm2 columns", 64, vocab_size)
    logits = model(torch.from_numpy(ids)[None], use_cache=False).logits[0, 3::4]
    return {
        "logits": logits[:, columns].numpy().copy(),
        "logsumexp": logits.logsumexp(-1).numpy(),
    }


@torch.no_grad()
def main(arguments):
    if arguments:
        save_file(smollm2_logits(arguments[0]), OUT / "logits_smollm2.safetensors")
    else:
        logits = {name: tiny_logits(name, config) for name, config in CASES.items()}
        save_file(logits, OUT / "logits.safetensors", {name: json.dumps(config) for name, config in CASES.items()})


main(sys.argv[1:])
