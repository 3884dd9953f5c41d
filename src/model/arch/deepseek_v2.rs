//! DeepSeek V2 and V2-Lite: V3's attention.

use super::deepseek_v3::DEEPSEEK_V3;
use super::experts::{llama_experts, shared_experts, softmax_router};
use super::llama::LLAMA;
use super::{
    Architecture, Bias, Experts, GroupScore, Pairs, Rotary, Router, SparseLayers, llama_mlp,
};

pub const DEEPSEEK_V2: Architecture = Architecture {
    model_type: "deepseek_v2",
    architecture: "DeepseekV2ForCausalLM",
    mlp: llama_mlp(Bias::If("mlp_bias")),
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        ..LLAMA.rotary
    },
    experts: Some(Experts {
        layers: SparseLayers::From("first_k_dense_replace"),
        shared: Some(shared_experts("n_shared_experts")),
        ..llama_experts(Router {
            groups: Some(GroupScore::BestIfLimited),
            scaling: Some("routed_scaling_factor"),
            ..softmax_router("mlp.gate", Bias::Never)
        })
    }),
    defaults: &[
        ("topk_method", "\"greedy\""),
        ("num_experts", "64"),
        ("moe_intermediate_size", "1407"),
        ("n_shared_experts", "2"),
        ("q_lora_rank", "1536"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "128"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "128"),
        ("max_position_embeddings", "2048"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("moe_layer_freq", &["1"]),
        ("scoring_func", &["\"softmax\""]),
        ("topk_method", &["\"greedy\"", "\"group_limited_greedy\""]),
    ],
    ..DEEPSEEK_V3
};
