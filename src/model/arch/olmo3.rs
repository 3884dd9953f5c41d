//! OLMo 3: OLMo 2 with windows in three of four layers, whose rotary embedding is never stretched.

use super::llama::LLAMA;
use super::olmo2::OLMO2;
use super::{Architecture, Rotary, WindowRule};

pub const OLMO3: Architecture = Architecture {
    model_type: "olmo3",
    architecture: "Olmo3ForCausalLM",
    rotary: Rotary {
        windowed: Some("rope_theta"),
        ..LLAMA.rotary
    },
    window: WindowRule::AllButEvery("sliding_window_pattern"),
    defaults: &[
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "500000.0"),
        ("sliding_window", "4096"),
        ("sliding_window_pattern", "4"),
        ("max_position_embeddings", "2048"),
    ],
    ..OLMO2
};
