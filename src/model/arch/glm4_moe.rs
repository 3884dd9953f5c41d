//! GLM-4.5 to 4.7: half of a head turns, queries and keys may be normalized, and most layers have DeepSeek's experts.

use super::experts::{deepseek_router, llama_experts, shared_experts};
use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Experts, NormSite, SparseLayers, llama_attention, llama_mlp,
};

pub const GLM4_MOE: Architecture = Architecture {
    model_type: "glm4_moe",
    architecture: "Glm4MoeForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    attention: Attention {
        qk_norm_if: Some("use_qk_norm"),
        ..llama_attention(Bias::If("attention_bias"), Bias::Never)
    },
    mlp: llama_mlp(Bias::Never),
    experts: Some(Experts {
        layers: SparseLayers::From("first_k_dense_replace"),
        shared: Some(shared_experts("n_shared_experts")),
        ..llama_experts(deepseek_router())
    }),
    aliases: &[("num_experts", "n_routed_experts")],
    defaults: &[
        ("num_key_value_heads", "8"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "131072"),
        ("partial_rotary_factor", "0.5"),
        ("num_experts", "128"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "1408"),
        ("n_shared_experts", "1"),
        ("first_k_dense_replace", "1"),
        ("norm_topk_prob", "true"),
    ],
    requires: &[("is_causal", &["true"])],
    ..LLAMA
};
