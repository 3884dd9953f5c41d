"""Configurations with mixtures of experts."""

MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}


def cases(family):
    """By their names; `family` changes Llama's configuration."""
    return {
        "mixtral": family(
            "mixtral", "MixtralForCausalLM", num_local_experts=8, num_experts_per_tok=2, head_dim=20),
        "qwen2_moe": family("qwen2_moe", "Qwen2MoeForCausalLM", **MOE, shared_expert_intermediate_size=56),
        "qwen3_moe": family("qwen3_moe", "Qwen3MoeForCausalLM", **MOE, head_dim=20, norm_topk_prob=True),
        "qwen3_moe_some_layers": family(
            "qwen3_moe", "Qwen3MoeForCausalLM", **MOE, head_dim=20, num_hidden_layers=4, decoder_sparse_step=2,
            mlp_only_layers=[3], use_sliding_window=True, sliding_window=7),
    }
