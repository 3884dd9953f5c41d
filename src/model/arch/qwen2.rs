//! Qwen 2 and 2.5: Llama with biases on Q, K and V, and a sliding window in the layers that the config names.

use super::llama::LLAMA;
use super::{Architecture, Bias, WindowRule, llama_attention, llama_mlp};

pub const QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    attention: llama_attention(Bias::Always, Bias::Never),
    mlp: llama_mlp(Bias::Never),
    window: WindowRule::ByLayerType,
    defaults: &[
        ("max_position_embeddings", "32768"),
        ("num_key_value_heads", "32"),
        ("sliding_window", "4096"),
        ("max_window_layers", "28"),
    ],
    ..LLAMA
};
