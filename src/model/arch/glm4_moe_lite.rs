//! GLM-4.7-Flash: DeepSeek V3 with other defaults.

use super::Architecture;
use super::deepseek_v3::DEEPSEEK_V3;

pub const GLM4_MOE_LITE: Architecture = Architecture {
    model_type: "glm4_moe_lite",
    architecture: "Glm4MoeLiteForCausalLM",
    defaults: &[
        ("num_experts", "64"),
        ("num_experts_per_tok", "4"),
        ("moe_intermediate_size", "1536"),
        ("n_shared_experts", "1"),
        ("first_k_dense_replace", "1"),
        ("norm_topk_prob", "true"),
        ("routed_scaling_factor", "1.8"),
        ("num_key_value_heads", "20"),
        ("q_lora_rank", "768"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "192"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "256"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "202752"),
    ],
    ..DEEPSEEK_V3
};
