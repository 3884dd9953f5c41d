//! dots.llm1: Qwen 3's attention and DeepSeek's experts.

use super::experts::{deepseek_router, llama_experts, shared_experts};
use super::qwen3::QWEN3;
use super::{Architecture, Experts, SparseLayers};

pub const DOTS1: Architecture = Architecture {
    model_type: "dots1",
    architecture: "Dots1ForCausalLM",
    experts: Some(Experts {
        layers: SparseLayers::From("first_k_dense_replace"),
        shared: Some(shared_experts("n_shared_experts")),
        ..llama_experts(deepseek_router())
    }),
    aliases: &[("num_experts", "n_routed_experts")],
    defaults: &[
        ("num_key_value_heads", "32"),
        ("max_position_embeddings", "2048"),
        ("moe_intermediate_size", "1408"),
        // Windows are used wherever layers are called so.
        ("use_sliding_window", "true"),
        ("sliding_window", "4096"),
        ("max_window_layers", "62"),
    ],
    ..QWEN3
};
