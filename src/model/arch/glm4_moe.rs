//! GLM-4.5 to 4.7: half of a head turns, and queries and keys may be normalized.

use super::llama::LLAMA;
use super::{Architecture, Attention, Bias, NormSite, llama_attention, llama_mlp};

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
    defaults: &[
        ("num_key_value_heads", "8"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "131072"),
        ("partial_rotary_factor", "0.5"),
    ],
    requires: &[("is_causal", &["true"]), ("n_routed_experts", &["null"])],
    ..LLAMA
};
