//! Mistral 4: DeepSeek V3's attention with Ministral 3's temperatures.

use super::deepseek_v3::DEEPSEEK_V3;
use super::experts::{deepseek_router, shared_experts, stacked_experts};
use super::{Architecture, Attention, Experts, Router, Scoring, SparseLayers, Temperature};

pub const MISTRAL4: Architecture = Architecture {
    model_type: "mistral4",
    architecture: "Mistral4ForCausalLM",
    attention: Attention {
        temperature: Temperature::Stretched,
        ..DEEPSEEK_V3.attention
    },
    experts: Some(Experts {
        layers: SparseLayers::From("first_k_dense_replace"),
        shared: Some(shared_experts("n_shared_experts")),
        ..stacked_experts(Router {
            scoring: Scoring::Softmax,
            correction: None,
            ..deepseek_router()
        })
    }),
    defaults: &[
        ("num_experts", "128"),
        ("num_experts_per_tok", "4"),
        ("moe_intermediate_size", "2048"),
        ("n_shared_experts", "1"),
        ("norm_topk_prob", "true"),
        ("num_key_value_heads", "32"),
        ("q_lora_rank", "1024"),
        ("kv_lora_rank", "256"),
        ("qk_nope_head_dim", "64"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "128"),
        ("max_position_embeddings", "1048576"),
        (
            "rope_parameters",
            r#"{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0, "original_max_position_embeddings": 8192,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}"#,
        ),
    ],
    requires: &[("is_causal", &["true"])],
    ..DEEPSEEK_V3
};
