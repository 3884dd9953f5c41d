//! OLMoE: Llama with experts, whose queries and keys are normalized over all heads.

use super::experts::{llama_experts, softmax_router};
use super::llama::LLAMA;
use super::{Architecture, Attention, Bias, NormSite, QkNorm, llama_attention};

pub const OLMOE: Architecture = Architecture {
    model_type: "olmoe",
    architecture: "OlmoeForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    attention: Attention {
        qk_norm: QkNorm::Whole,
        clip: Some("clip_qkv"),
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    experts: Some(llama_experts(softmax_router(
        "mlp.gate",
        Bias::If("norm_topk_prob"),
    ))),
    aliases: &[("moe_intermediate_size", "intermediate_size")],
    defaults: &[
        ("num_experts", "64"),
        ("num_experts_per_tok", "8"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "4096"),
    ],
    ..LLAMA
};
