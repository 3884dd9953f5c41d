//! Ministral: Mistral with windows in the layers that the config names, or in all.

use super::llama::LLAMA;
use super::mistral::MISTRAL;
use super::{Architecture, WindowRule};

pub const MINISTRAL: Architecture = Architecture {
    model_type: "ministral",
    architecture: "MinistralForCausalLM",
    window: WindowRule::AllButEvery("sliding_window_pattern"),
    defaults: &[
        ("max_position_embeddings", "131072"),
        ("num_key_value_heads", "8"),
        ("sliding_window", "4096"),
    ],
    requires: LLAMA.requires,
    ..MISTRAL
};
