//! Cohere's Command R7B and A: windows and positions in three of four layers, neither in the fourth.

use super::cohere::COHERE;
use super::llama::LLAMA;
use super::{Architecture, Pairs, RopeLayers, Rotary, WindowRule};

pub const COHERE2: Architecture = Architecture {
    model_type: "cohere2",
    architecture: "Cohere2ForCausalLM",
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        layers: RopeLayers::Windowed,
        ..LLAMA.rotary
    },
    window: WindowRule::AllButEvery("sliding_window_pattern"),
    defaults: &[
        ("layer_norm_eps", "1e-5"),
        ("logit_scale", "0.0625"),
        ("sliding_window", "4096"),
        ("sliding_window_pattern", "4"),
        ("max_position_embeddings", "8192"),
        ("tie_word_embeddings", "true"),
    ],
    ..COHERE
};
