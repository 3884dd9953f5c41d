//! Phi 3.5 MoE: Mixtral's experts behind LayerNorms, two of them chosen by SparseMixer.

use super::experts::softmax_router;
use super::mixtral::{MIXTRAL, MIXTRAL_EXPERTS};
use super::{Architecture, Bias, Experts, NormKind, Router, Scoring, llama_attention};

pub const PHIMOE: Architecture = Architecture {
    model_type: "phimoe",
    architecture: "PhimoeForCausalLM",
    norm: NormKind::Layer,
    head_bias: Bias::If("lm_head_bias"),
    attention: llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias")),
    experts: Some(Experts {
        router: Router {
            scoring: Scoring::SparseMixer,
            ..softmax_router("block_sparse_moe.gate", Bias::Never)
        },
        ..MIXTRAL_EXPERTS
    }),
    defaults: &[
        ("num_experts", "16"),
        ("num_experts_per_tok", "2"),
        ("num_key_value_heads", "8"),
        ("router_jitter_noise", "0.01"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "1e6"),
        ("sliding_window", "null"),
        ("max_position_embeddings", "131072"),
    ],
    ..MIXTRAL
};
