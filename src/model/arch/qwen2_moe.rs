//! Qwen 1.5 and 2 with experts: what every token goes through besides has a gate.

use super::experts::{llama_experts, softmax_router};
use super::qwen2::QWEN2;
use super::{
    Architecture, Bias, Experts, Role, Shared, SharedWidth, SparseLayers, linear, llama_attention,
};

pub const QWEN2_MOE: Architecture = Architecture {
    model_type: "qwen2_moe",
    architecture: "Qwen2MoeForCausalLM",
    attention: llama_attention(Bias::If("qkv_bias"), Bias::Never),
    experts: Some(Experts {
        layers: SparseLayers::SparseStep,
        shared: Some(Shared {
            inputs: &[
                linear("mlp.shared_expert.gate_proj", &[Role::Gate]),
                linear("mlp.shared_expert.up_proj", &[Role::Up]),
            ],
            output: linear("mlp.shared_expert.down_proj", &[Role::Down]),
            width: SharedWidth::By("shared_expert_intermediate_size"),
            gate: Some("mlp.shared_expert_gate"),
        }),
        ..llama_experts(softmax_router("mlp.gate", Bias::If("norm_topk_prob")))
    }),
    defaults: &[
        ("max_position_embeddings", "32768"),
        ("num_key_value_heads", "16"),
        ("sliding_window", "4096"),
        ("max_window_layers", "28"),
        ("qkv_bias", "true"),
        ("num_experts", "60"),
        ("num_experts_per_tok", "4"),
        ("moe_intermediate_size", "1408"),
        ("shared_expert_intermediate_size", "5632"),
    ],
    ..QWEN2
};
