//! Mistral: Llama with a sliding window in every layer, unless `sliding_window` is null.

use super::llama::LLAMA;
use super::{Architecture, Bias, WindowRule, llama_attention, llama_mlp};

pub const MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    attention: llama_attention(Bias::Never, Bias::Never),
    mlp: llama_mlp(Bias::Never),
    window: WindowRule::EveryLayer,
    defaults: &[
        ("max_position_embeddings", "131072"),
        ("num_key_value_heads", "8"),
        ("sliding_window", "4096"),
    ],
    // transformers ignores layer_types here with a warning that another class is meant.
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("layer_types", &["null"]),
    ],
    ..LLAMA
};
