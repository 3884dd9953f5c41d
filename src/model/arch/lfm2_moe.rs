//! LFM2 with experts.

use super::experts::{expert, llama_experts, sigmoid_router};
use super::lfm2::LFM2;
use super::{Architecture, Bias, Experts, Role, Router, SparseLayers};

pub const LFM2_MOE: Architecture = Architecture {
    model_type: "lfm2_moe",
    architecture: "Lfm2MoeForCausalLM",
    experts: Some(Experts {
        layers: SparseLayers::From("num_dense_layers"),
        inputs: &[
            expert("feed_forward.experts.{}.w1", Role::Gate),
            expert("feed_forward.experts.{}.w3", Role::Up),
        ],
        output: expert("feed_forward.experts.{}.w2", Role::Down),
        ..llama_experts(Router {
            renormalize: Bias::If("norm_topk_prob"),
            scaling: Some("routed_scaling_factor"),
            ..sigmoid_router("feed_forward.gate", "feed_forward.expert_bias")
        })
    }),
    aliases: &[("tie_word_embeddings", "tie_embedding")],
    defaults: &[
        ("num_key_value_heads", "8"),
        ("intermediate_size", "7168"),
        ("max_position_embeddings", "128000"),
        ("rope_theta", "1000000.0"),
        ("norm_eps", "1e-5"),
        ("tie_word_embeddings", "true"),
        ("conv_L_cache", "3"),
        ("num_dense_layers", "2"),
        ("num_experts", "32"),
        ("num_experts_per_tok", "4"),
        ("moe_intermediate_size", "1792"),
        ("norm_topk_prob", "true"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("use_expert_bias", &["true"]),
    ],
    ..LFM2
};
