//! A.X K1: DeepSeek V3 with a norm after the experts.

use super::deepseek_v3::DEEPSEEK_V3;
use super::{Architecture, NormSite};

pub const AXK1: Architecture = Architecture {
    model_type: "axk1",
    architecture: "AXK1ForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::QueryLatent, "self_attn.q_a_layernorm"),
        (NormSite::KeyValueLatent, "self_attn.kv_a_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
        (NormSite::AfterExperts, "post_mlp_layernorm"),
    ],
    defaults: &[
        ("num_experts", "192"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "2048"),
        ("n_shared_experts", "1"),
        ("first_k_dense_replace", "1"),
        ("n_group", "8"),
        ("topk_group", "4"),
        ("norm_topk_prob", "true"),
        ("routed_scaling_factor", "2.5"),
        ("num_key_value_heads", "64"),
        ("q_lora_rank", "1536"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "128"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "128"),
        ("max_position_embeddings", "32768"),
    ],
    ..DEEPSEEK_V3
};
