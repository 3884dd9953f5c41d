//! Solar Open: Llama's attention and DeepSeek's experts in all layers.

use super::experts::{deepseek_router, llama_experts, shared_experts};
use super::llama::LLAMA;
use super::{Architecture, Bias, Experts, llama_attention};

pub const SOLAR_OPEN: Architecture = Architecture {
    model_type: "solar_open",
    architecture: "SolarOpenForCausalLM",
    attention: llama_attention(Bias::If("attention_bias"), Bias::Never),
    experts: Some(Experts {
        shared: Some(shared_experts("n_shared_experts")),
        ..llama_experts(deepseek_router())
    }),
    aliases: &[
        ("num_experts", "n_routed_experts"),
        ("intermediate_size", "moe_intermediate_size"),
    ],
    defaults: &[
        ("num_experts", "128"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "1280"),
        ("n_shared_experts", "1"),
        ("norm_topk_prob", "true"),
        ("num_key_value_heads", "8"),
        ("head_dim", "128"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "1e6"),
        ("max_position_embeddings", "131072"),
    ],
    requires: &[("is_causal", &["true"])],
    ..LLAMA
};
