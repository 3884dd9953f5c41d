//! FlexOlmo: OLMo 2 with experts.

use super::experts::{llama_experts, softmax_router};
use super::olmo2::OLMO2;
use super::{Architecture, Bias};

pub const FLEX_OLMO: Architecture = Architecture {
    model_type: "flex_olmo",
    architecture: "FlexOlmoForCausalLM",
    experts: Some(llama_experts(softmax_router(
        "mlp.gate",
        Bias::If("norm_topk_prob"),
    ))),
    aliases: &[("moe_intermediate_size", "intermediate_size")],
    defaults: &[
        ("num_experts", "7"),
        ("num_experts_per_tok", "5"),
        ("rms_norm_eps", "1e-6"),
        ("rope_theta", "500000.0"),
        ("max_position_embeddings", "4096"),
    ],
    ..OLMO2
};
