//! Qwen 3 (dense): each head's query and key are normalized, and heads are as wide as `head_dim` says.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormSite, WindowRule, llama_attention, llama_mlp};

pub const QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    attention: llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias")),
    mlp: llama_mlp(Bias::Never),
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    window: WindowRule::ByLayerType,
    defaults: &[
        ("max_position_embeddings", "32768"),
        ("num_key_value_heads", "32"),
        ("head_dim", "128"),
        ("sliding_window", "4096"),
        ("max_window_layers", "28"),
    ],
    ..LLAMA
};
