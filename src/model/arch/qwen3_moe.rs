//! Qwen 3 with experts.

use super::experts::{llama_experts, softmax_router};
use super::qwen3::QWEN3;
use super::{Architecture, Bias, Experts, SparseLayers, WindowRule};

pub const QWEN3_MOE: Architecture = Architecture {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    experts: Some(Experts {
        layers: SparseLayers::SparseStep,
        ..llama_experts(softmax_router("mlp.gate", Bias::If("norm_topk_prob")))
    }),
    window: WindowRule::EveryLayerIfUsed,
    defaults: &[
        ("max_position_embeddings", "32768"),
        ("num_key_value_heads", "4"),
        ("sliding_window", "4096"),
        ("num_experts", "128"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "768"),
    ],
    ..QWEN3
};
