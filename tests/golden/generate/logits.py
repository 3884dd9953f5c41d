"""Logits of tiny models with weights by formula (formula.py), as transformers computes them in float32.

    python logits.py                 writes ../logits.safetensors
    python logits.py MODEL_DIR       writes ../logits_smollm2.safetensors from SmolLM2-135M-Instruct

Made with Python 3.11, torch 2.13.0 (CPU), transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6; eager attention.
There is no seed: every number is a hash of its name and index.
"""
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

import cases_gemma4
import cases_gpt
import cases_hybrid
import cases_latent
import cases_moe
import cases_vision
import formula

logging.disable_progress_bar()
logging.set_verbosity_error()

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


def family(model_type, architecture, **changes):
    """Llama's config for another family; what is None is left out."""
    config = LLAMA | {"model_type": model_type, "architectures": [architecture]} | changes
    return {key: value for key, value in config.items() if value is not None}


# With LayerNorms, and heads of which a part can turn.
LAYER_NORM = {"rms_norm_eps": None, "layer_norm_eps": 1e-5}
WIDE = {"hidden_size": 64, "intermediate_size": 96}
TIED = {"tie_word_embeddings": True}
FOUR = {"num_hidden_layers": 4}
GEMMA = TIED | {"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"}
GEMMA2 = GEMMA | {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 20}
NEOX = WIDE | LAYER_NORM | {
    "num_key_value_heads": None, "rope_theta": None, "rotary_emb_base": 5000, "rotary_pct": 0.25, "hidden_act": "gelu",
    "tie_word_embeddings": False,
}
PHI3 = TIED | {"rope_theta": 10000.0, "max_position_embeddings": 64, "pad_token_id": 0}
LONG = {
    "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0], "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0],
}

FAMILIES = {
    "apertus": family("apertus", "ApertusForCausalLM", head_dim=20, hidden_act="xielu", mlp_bias=None),
    "internlm3": family(
        "internlm3", "InternLM3ForCausalLM", head_dim=20, qkv_bias=True, bias=True, attention_bias=True, mlp_bias=True,
        rope_scaling={"rope_type": "dynamic", "factor": 6.0}),
    "arcee": family("arcee", "ArceeForCausalLM", hidden_act="relu2", mlp_bias=True),
    "cohere": family("cohere", "CohereForCausalLM", **LAYER_NORM, **TIED, logit_scale=0.3, attention_bias=True),
    "cohere2": family("cohere2", "Cohere2ForCausalLM", **LAYER_NORM, **TIED, **FOUR, sliding_window=7),
    "ernie4_5": family("ernie4_5", "Ernie4_5ForCausalLM", **TIED, head_dim=20, use_bias=True),
    "exaone4_window": family("exaone4", "Exaone4ForCausalLM", **FOUR, sliding_window=7, sliding_window_pattern=4),
    "gemma": family("gemma", "GemmaForCausalLM", **GEMMA),
    "gemma_gelu": family("gemma", "GemmaForCausalLM", **GEMMA | {"hidden_act": "gelu"}),
    "gemma2": family(
        "gemma2", "Gemma2ForCausalLM", **GEMMA2, sliding_window=6, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3_text": family(
        "gemma3_text", "Gemma3ForCausalLM", **GEMMA2, sliding_window=6, sliding_window_pattern=2, rope_local_base_freq=500.0),
    "gemma3_text_scaled": family(
        "gemma3_text", "Gemma3ForCausalLM", **GEMMA2, sliding_window=6,
        layer_types=["sliding_attention", "full_attention"], rope_theta=None, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        }),
    "glm": family("glm", "GlmForCausalLM", head_dim=12, pad_token_id=0),
    "glm4": family("glm4", "Glm4ForCausalLM", head_dim=12, pad_token_id=0, attention_bias=False),
    "gpt_neox": family("gpt_neox", "GPTNeoXForCausalLM", **NEOX),
    "gpt_neox_sequential": family("gpt_neox", "GPTNeoXForCausalLM", **NEOX, use_parallel_residual=False, attention_bias=False),
    "granite": family(
        "granite", "GraniteForCausalLM", embedding_multiplier=3.0, attention_multiplier=0.1, residual_multiplier=0.3,
        logits_scaling=4.0),
    "helium": family("helium", "HeliumForCausalLM", head_dim=12, rms_norm_eps=1e-8),
    "hunyuan_v1_dense": family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", head_dim=12),
    "hunyuan_v1_dense_alpha": family(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", head_dim=12, attention_bias=True,
        rope_scaling={"type": "dynamic", "alpha": 50.0, "factor": 1.0}),
    "ministral": family("ministral", "MinistralForCausalLM", head_dim=12, sliding_window=7),
    "ministral_layer_types": family(
        "ministral", "MinistralForCausalLM", head_dim=12, sliding_window=7, layer_types=["full_attention", "sliding_attention"]),
    "nemotron": family(
        "nemotron", "NemotronForCausalLM", rms_norm_eps=None, norm_eps=1e-5, hidden_act="relu2", partial_rotary_factor=0.5),
    "olmo": family("olmo", "OlmoForCausalLM", rms_norm_eps=None),
    "olmo2": family("olmo2", "Olmo2ForCausalLM"),
    "olmo3": family(
        "olmo3", "Olmo3ForCausalLM", **FOUR, sliding_window=7, rope_theta=500000.0,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "phi": family("phi", "PhiForCausalLM", **LAYER_NORM, **WIDE, hidden_act="gelu_new", partial_rotary_factor=0.5),
    "phi3": family("phi3", "Phi3ForCausalLM", **PHI3, sliding_window=9),
    "phi3_longrope_short": family(
        "phi3", "Phi3ForCausalLM", **PHI3, rope_scaling=LONG, original_max_position_embeddings=32),
    "phi3_longrope_long": family(
        "phi3", "Phi3ForCausalLM", **PHI3, rope_scaling=LONG, original_max_position_embeddings=16),
    "seed_oss": family("seed_oss", "SeedOssForCausalLM", head_dim=12, attention_out_bias=True),
    "smollm3": family("smollm3", "SmolLM3ForCausalLM", **FOUR, **TIED, pad_token_id=0),
    "smollm3_window": family(
        "smollm3", "SmolLM3ForCausalLM", **FOUR, **TIED, pad_token_id=0, use_sliding_window=True, sliding_window=7,
        no_rope_layers=[1, 0, 0, 1]),
    "stablelm": family("stablelm", "StableLmForCausalLM", **LAYER_NORM, **WIDE, use_qkv_bias=True),
    "starcoder2": family(
        "starcoder2", "Starcoder2ForCausalLM", **TIED, rms_norm_eps=None, norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh",
        sliding_window=7),
}

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


CASES |= FAMILIES | cases_gemma4.CASES | cases_gpt.CASES | cases_hybrid.cases(family) | cases_latent.CASES | cases_moe.CASES
CASES |= cases_vision.CASES
# Families that transformers has under another name.
ACTS_AS = {"internlm3": ("llama", "LlamaForCausalLM"), "kimi_k2": ("deepseek_v3", "DeepseekV3ForCausalLM")}
# Names that transformers has for tensors that files and runtimes call otherwise.
STORED = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}
# Families whose published files have the names that transformers has in memory, not those that it would write.
AS_IN_MEMORY = {"qwen3_5_moe"}
# Families whose published files have these tensors' last dimensions the other way round from what transformers writes.
TURNED = {"qwen3_vl_moe": ("experts.gate_up_proj", "experts.down_proj")}


# transformers 5.23 adds Falcon's slopes twice in its eager attention.
ATTENTION = {"falcon": "sdpa"}


def options(model_type):
    return {"attn_implementation": ATTENTION.get(model_type, "eager"), "dtype": torch.float32}


def save_as_published(config, directory):
    """Saves a model of this configuration, which gives its tensors the names that published files have; returns its class
    and the tensors' shapes."""
    # from_dict takes what it is given to pieces.
    model_type, class_name = ACTS_AS.get(config["model_type"], (config["model_type"], config["architectures"][0]))
    typed = CONFIG_MAPPING[model_type].from_dict(json.loads(json.dumps(config | {"model_type": model_type})))
    model_class = getattr(transformers, class_name)
    model_class._from_config(typed, **options(model_type)).save_pretrained(
        directory, save_original_format=model_type not in AS_IN_MEMORY)
    with safe_open(pathlib.Path(directory) / "model.safetensors", "np") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    turned = TURNED.get(model_type)
    return model_class, {
        key: (shape[0], shape[2], shape[1]) if turned and key.endswith(turned) else shape for key, shape in shapes.items()}


def load_with(model_class, directory, tensors):
    """The model in `directory` with these tensors in its file's place; each must have one in the model and the reverse."""
    save_file(tensors, pathlib.Path(directory) / "model.safetensors", {"format": "pt"})
    model_type = json.loads((pathlib.Path(directory) / "config.json").read_text())["model_type"]
    model, loading = model_class.from_pretrained(directory, output_loading_info=True, **options(model_type))
    wrong = {key: loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading[key]}
    assert not wrong, wrong
    return model.eval()


def tiny_logits(name, config):
    """Logits of a model that was loaded from a file with weights by formula under the published names."""
    stored = STORED.get(config["model_type"], {})
    with tempfile.TemporaryDirectory() as directory:
        model_class, shapes = save_as_published(config, directory)
        tensors = {key: formula.tensor(stored.get(key, key), shape) for key, shape in shapes.items()}
        model = load_with(model_class, directory, tensors)
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


if __name__ == "__main__":
    main(sys.argv[1:])
