"""Cases of logits.py: mixtures of experts."""

BASE = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "rope_theta": 10000.0, "num_experts_per_tok": 3, "pad_token_id": 0,
}
NARROW = {"moe_intermediate_size": 40}
EXPERTS = NARROW | {"num_experts": 8}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED = NARROW | {"n_routed_experts": 8, "n_shared_experts": 1}
GROUPS = ROUTED | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 24, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
GRANITE = LOCAL | {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.3, "logits_scaling": 4.0,
}
LONG = {
    "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0], "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0],
    "short_mscale": 1.1, "long_mscale": 1.3,
    # transformers takes the short factors with the long context's factor of cosines beyond it.
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 16,
}

TEMPERATURE = YARN | {"rope_theta": 1000.0, "mscale": 1.0, "mscale_all_dim": 0.8, "llama_4_scaling_beta": 0.4}


def family(model_type, architecture, **changes):
    """Llama's config for another family; what is None is left out."""
    config = BASE | {"model_type": model_type, "architectures": [architecture]} | changes
    return {key: value for key, value in config.items() if value is not None}


CASES = {
    "axk1": family("axk1", "AXK1ForCausalLM", **GROUPS | LATENT, num_hidden_layers=3),
    "dbrx": {
        "model_type": "dbrx", "architectures": ["DbrxForCausalLM"], "vocab_size": 64, "d_model": 48, "n_heads": 4,
        "n_layers": 2, "max_seq_len": 64, "tie_word_embeddings": False,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 1.5, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 6, "moe_top_k": 2},
    },
    "deepseek_v2": family(
        "deepseek_v2", "DeepseekV2ForCausalLM", **GROUPS | LATENT, num_hidden_layers=3, first_k_dense_replace=1,
        topk_method="group_limited_greedy"),
    "deepseek_v2_greedy": family("deepseek_v2", "DeepseekV2ForCausalLM", **GROUPS | LATENT, mlp_bias=True),
    "deepseek_v2_lite": family("deepseek_v2", "DeepseekV2ForCausalLM", **ROUTED | LATENT | {"q_lora_rank": None}),
    "deepseek_v3": family(
        "deepseek_v3", "DeepseekV3ForCausalLM", **GROUPS | LATENT, num_hidden_layers=3, first_k_dense_replace=1),
    "dots1": family(
        "dots1", "Dots1ForCausalLM", **ROUTED, first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=2.0,
        head_dim=20, sliding_window=7, max_window_layers=1),
    "ernie4_5_moe": family(
        "ernie4_5_moe", "Ernie4_5_MoeForCausalLM", **NARROW, num_hidden_layers=3, moe_num_experts=8, moe_k=3,
        num_experts_per_tok=None, moe_layer_start_index=1, moe_layer_end_index=1, moe_num_shared_experts=2,
        tie_word_embeddings=True),
    "exaone_moe": family(
        "exaone_moe", "ExaoneMoeForCausalLM", **EXPERTS, num_hidden_layers=4, head_dim=20, sliding_window=7,
        sliding_window_pattern=4),
    "flex_olmo": family("flex_olmo", "FlexOlmoForCausalLM", num_experts=8, norm_topk_prob=True),
    "glm4_moe": family(
        "glm4_moe", "Glm4MoeForCausalLM", **GROUPS, first_k_dense_replace=1, head_dim=16, use_qk_norm=True,
        attention_bias=True),
    "glm4_moe_lite": family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", **ROUTED | LATENT),
    "gpt_oss": family(
        "gpt_oss", "GptOssForCausalLM", **LOCAL, head_dim=16, sliding_window=7, swiglu_limit=0.8, rope_scaling=YARN),
    "granitemoe": family("granitemoe", "GraniteMoeForCausalLM", **GRANITE, tie_word_embeddings=True),
    "granitemoeshared": family("granitemoeshared", "GraniteMoeSharedForCausalLM", **GRANITE, shared_intermediate_size=56),
    "hunyuan_v1_moe": family(
        "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", num_experts=8, num_experts_per_tok=None, moe_topk=2, head_dim=12),
    "hy_v3": family("hy_v3", "HYV3ForCausalLM", **EXPERTS, head_dim=20),
    "kimi_k2": family(
        "kimi_k2", "DeepseekV3ForCausalLM", **ROUTED | LATENT, first_k_dense_replace=1, n_group=1, topk_group=1),
    "llama4_text": family(
        "llama4_text", "Llama4ForCausalLM", **LOCAL, num_hidden_layers=4, head_dim=12, intermediate_size_mlp=64,
        interleave_moe_layer_step=2, attention_chunk_size=7, floor_scale=5, attn_scale=0.3),
    "minimax_m2": family("minimax_m2", "MiniMaxM2ForCausalLM", **LOCAL, head_dim=16, rotary_dim=8),
    "mistral4": family(
        "mistral4", "Mistral4ForCausalLM", **GROUPS | LATENT, first_k_dense_replace=1, rope_parameters=TEMPERATURE),
    "mixtral": family("mixtral", "MixtralForCausalLM", **LOCAL, head_dim=20),
    "mixtral_window": family("mixtral", "MixtralForCausalLM", **LOCAL, sliding_window=7, tie_word_embeddings=True),
    "olmoe": family("olmoe", "OlmoeForCausalLM", num_experts=8, norm_topk_prob=True, clip_qkv=1.0),
    "phimoe": family("phimoe", "PhimoeForCausalLM", **LOCAL, attention_bias=True, lm_head_bias=True, router_jitter_noise=0.3),
    "phimoe_longrope": family("phimoe", "PhimoeForCausalLM", **LOCAL, rope_scaling=LONG, sliding_window=9),
    "qwen2_moe": family("qwen2_moe", "Qwen2MoeForCausalLM", **EXPERTS, shared_expert_intermediate_size=56),
    "qwen3_moe": family("qwen3_moe", "Qwen3MoeForCausalLM", **EXPERTS, head_dim=20, norm_topk_prob=True),
    "qwen3_moe_some_layers": family(
        "qwen3_moe", "Qwen3MoeForCausalLM", **EXPERTS, head_dim=20, num_hidden_layers=4, decoder_sparse_step=2,
        mlp_only_layers=[3], use_sliding_window=True, sliding_window=7),
    "solar_open": family("solar_open", "SolarOpenForCausalLM", **ROUTED, intermediate_size=None, head_dim=20),
}
