"""Configurations of models in which not all layers mix tokens by attention alone."""

LFM2 = {
    "rms_norm_eps": None, "norm_eps": 1e-5, "num_hidden_layers": 3, "block_multiple_of": 8, "intermediate_size": 104,
    "pad_token_id": 0,
}
DELTA = {
    "head_dim": 16, "num_hidden_layers": 4, "linear_key_head_dim": 12, "linear_value_head_dim": 20,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 10, "mamba_n_groups": 2, "mamba_d_state": 20, "hidden_size": 40, "head_dim": 12,
}
GRANITE = MAMBA | {
    "num_local_experts": 0, "num_hidden_layers": 3, "shared_intermediate_size": 88, "embedding_multiplier": 3.0,
    "attention_multiplier": 0.1, "residual_multiplier": 0.3, "logits_scaling": 4.0,
}
NEMOTRON_H = {
    "mamba_num_heads": 8, "mamba_head_dim": 10, "n_groups": 2, "ssm_state_size": 20, "conv_kernel": 3, "hidden_size": 40,
    "head_dim": 12, "hidden_act": None, "mlp_hidden_act": "relu2", "rms_norm_eps": None, "layer_norm_epsilon": 1e-5,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
TEXT = DELTA | {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0],
        "mrope_interleaved": True,
    },
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 2, "out_hidden_size": 48,
    "num_position_embeddings": 16,
}
EYES = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63, "vocab_size": 64}


def cases(family):
    """By their names; `family` changes Llama's configuration."""
    return {
        "qwen3_5": EYES | {
            "model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "tie_word_embeddings": True,
            "text_config": TEXT | {"model_type": "qwen3_5_text"}, "vision_config": VISION | {"model_type": "qwen3_5_vision"},
        },
        "qwen3_5_moe": EYES | {
            "model_type": "qwen3_5_moe", "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "text_config": TEXT | EXPERTS | {"model_type": "qwen3_5_moe_text", "shared_expert_intermediate_size": 56},
            "vision_config": VISION | {"model_type": "qwen3_5_moe_vision"},
        },
        "qwen3_5_moe_text": family(
            "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", **DELTA | EXPERTS | {"num_hidden_layers": 2},
            shared_expert_intermediate_size=56, intermediate_size=None, full_attention_interval=2),
        "lfm2_moe": family(
            "lfm2_moe", "Lfm2MoeForCausalLM", **LFM2 | EXPERTS, num_dense_layers=1, routed_scaling_factor=1.5,
            layer_types=["conv", "full_attention", "conv"]),
        "granitemoehybrid": family(
            "granitemoehybrid", "GraniteMoeHybridForCausalLM", **GRANITE | {"num_local_experts": 8, "num_experts_per_tok": 3},
            layer_types=["mamba", "attention", "mamba"]),
        "nemotron_h_moe": family(
            "nemotron_h", "NemotronHForCausalLM", **NEMOTRON_H, num_hidden_layers=4, hybrid_override_pattern="MEE*",
            n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=40, moe_shared_expert_intermediate_size=56,
            n_group=4, topk_group=2, routed_scaling_factor=1.7),
        "lfm2": family(
            "lfm2", "Lfm2ForCausalLM", **LFM2, layer_types=["conv", "full_attention", "conv"], conv_bias=True),
        "lfm2_listed": family(
            "lfm2", "Lfm2ForCausalLM", **LFM2, full_attn_idxs=[1], conv_L_cache=4, block_auto_adjust_ff_dim=False,
            tie_embedding=False, rope_theta=None),
        "qwen3_next_dense": family(
            "qwen3_next", "Qwen3NextForCausalLM", **DELTA | {"num_hidden_layers": 2}, mlp_only_layers=[0, 1],
            full_attention_interval=2),
        "qwen3_next": family(
            "qwen3_next", "Qwen3NextForCausalLM", **DELTA, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=40,
            shared_expert_intermediate_size=56, decoder_sparse_step=2, full_attention_interval=2),
        "qwen3_5_text": family("qwen3_5_text", "Qwen3_5ForCausalLM", **DELTA),
        "qwen3_5_text_types": family(
            "qwen3_5_text", "Qwen3_5ForCausalLM", **DELTA | {"num_hidden_layers": 2, "linear_num_key_heads": 4},
            layer_types=["full_attention", "linear_attention"], partial_rotary_factor=0.5),
        "falcon_h1": family(
            "falcon_h1", "FalconH1ForCausalLM", **MAMBA, mamba_d_ssm=80, embedding_multiplier=3.0, lm_head_multiplier=0.4,
            mlp_multipliers=[0.7, 1.3], key_multiplier=0.6, attention_in_multiplier=0.9, attention_out_multiplier=0.8,
            ssm_multipliers=[0.5, 0.6, 0.7, 0.8, 0.9], ssm_in_multiplier=1.2, ssm_out_multiplier=0.4, mlp_bias=True),
        "falcon_h1_norm": family(
            "falcon_h1", "FalconH1ForCausalLM", **MAMBA | {"mamba_d_head": "auto"}, mamba_d_ssm=80, mamba_rms_norm=True,
            mamba_norm_before_gate=False, mamba_conv_bias=False, projectors_bias=True, tie_word_embeddings=True),
        "granitemoehybrid_dense": family(
            "granitemoehybrid", "GraniteMoeHybridForCausalLM", **GRANITE, layer_types=["mamba", "attention", "mamba"]),
        "granitemoehybrid_rope": family(
            "granitemoehybrid", "GraniteMoeHybridForCausalLM", **GRANITE, position_embedding_type="rope",
            layer_types=["linear_attention", "full_attention", "full_attention"], tie_word_embeddings=True),
        "nemotron_h": family(
            "nemotron_h", "NemotronHForCausalLM", **NEMOTRON_H, num_hidden_layers=3, hybrid_override_pattern="M*-",
            use_bias=True),
        "nemotron_h_types": family(
            "nemotron_h", "NemotronHForCausalLM", **NEMOTRON_H, num_hidden_layers=3, mlp_bias=True,
            layers_block_type=["full_attention", "mlp", "linear_attention"], time_step_min=0.3),
    }
