"""Cases of logits.py: multi-head latent attention, and what attention may do besides."""

BASE = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "rope_theta": 10000.0, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 10, "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
WIDE_VALUES = {"v_head_dim": 18}
# A part that turns with four frequencies.
TURNING = {"kv_lora_rank": 24, "qk_rope_head_dim": 8}
YARN = TURNING | {
    "max_position_embeddings": 640,
    "rope_scaling": {
        "type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 1.1,
    },
}


def family(model_type, architecture, **changes):
    return BASE | {"model_type": model_type, "architectures": [architecture]} | changes


def without(config, *keys):
    return {key: value for key, value in config.items() if key not in keys}


DENSE = {"first_k_dense_replace": 2}
LATENT_KEYS = ["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"]
TEMPERATURE = {
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 5, "mscale": 1.0,
        "mscale_all_dim": 0.8, "llama_4_scaling_beta": 0.4,
    },
}
GLM4_MOE = without(
    family("glm4_moe", "Glm4MoeForCausalLM", **DENSE, num_key_value_heads=2, head_dim=20, attention_bias=True), *LATENT_KEYS)
LLAMA4 = without(
    family(
        "llama4_text", "Llama4ForCausalLM", num_key_value_heads=2, head_dim=14, intermediate_size_mlp=72, moe_layers=[],
        num_hidden_layers=4, attention_chunk_size=7, floor_scale=5, attn_scale=0.3),
    "intermediate_size", *LATENT_KEYS)

CASES = {
    "deepseek_v2_dense": family("deepseek_v2", "DeepseekV2ForCausalLM", **DENSE, **YARN, attention_bias=True),
    "deepseek_v2_lite_dense": without(
        family("deepseek_v2", "DeepseekV2ForCausalLM", **DENSE, **WIDE_VALUES, q_lora_rank=None, mlp_bias=True),
        "num_key_value_heads"),
    "deepseek_v3_dense": family("deepseek_v3", "DeepseekV3ForCausalLM", **DENSE, **YARN),
    "deepseek_v3_halves": family(
        "deepseek_v3", "DeepseekV3ForCausalLM", **DENSE, **TURNING, rope_interleave=False, q_lora_rank=None,
        attention_bias=True, tie_word_embeddings=True),
    "glm4_moe_lite_dense": family(
        "glm4_moe_lite", "Glm4MoeLiteForCausalLM", **TURNING, mlp_layer_types=["dense", "dense"]),
    "kimi_k2_dense": family("kimi_k2", "DeepseekV3ForCausalLM", **DENSE, **YARN, head_dim=8),
    "minicpm3": without(
        family(
            "minicpm3", "MiniCPM3ForCausalLM", **TURNING, tie_word_embeddings=True, scale_emb=3, scale_depth=1.4,
            dim_model_base=12, rope_scaling={
                "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 2.0, 3.0, 4.0],
                "original_max_position_embeddings": 16,
            }),
        "v_head_dim"),
    "minicpm3_unscaled": family(
        "minicpm3", "MiniCPM3ForCausalLM", **WIDE_VALUES, q_lora_rank=None, scale_emb=1, scale_depth=None,
        dim_model_base=None, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "glm4_moe_dense": GLM4_MOE | {"use_qk_norm": True},
    "glm4_moe_no_norms": GLM4_MOE | {"partial_rotary_factor": 0.8},
    "llama4_text_dense": LLAMA4,
    "llama4_text_plain": LLAMA4 | {
        "no_rope_layers": [0, 1, 1, 0], "use_qk_norm": False, "attn_temperature_tuning": False, "attention_bias": True,
        "layer_types": ["full_attention", "full_attention", "chunked_attention", "chunked_attention"],
    },
    "ministral3": without(
        family("ministral3", "Ministral3ForCausalLM", num_key_value_heads=2, head_dim=14, sliding_window=9, **TEMPERATURE),
        "rope_theta", *LATENT_KEYS),
    "mistral4_dense": without(
        family("mistral4", "Mistral4ForCausalLM", **DENSE, **TURNING, **TEMPERATURE), "rope_theta"),
    "olmo_clip": without(
        family("olmo", "OlmoForCausalLM", num_key_value_heads=2, clip_qkv=0.7), "rms_norm_eps", *LATENT_KEYS),
    "youtu": family("youtu", "YoutuForCausalLM", **WIDE_VALUES, tie_word_embeddings=True),
}
