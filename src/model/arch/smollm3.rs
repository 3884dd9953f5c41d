//! SmolLM 3: Llama in which some layers know no positions; with `use_sliding_window` those have a window.

use super::llama::LLAMA;
use super::{Architecture, RopeLayers, Rotary, WindowRule};

pub const SMOLLM3: Architecture = Architecture {
    model_type: "smollm3",
    architecture: "SmolLM3ForCausalLM",
    rotary: Rotary {
        layers: RopeLayers::NoRopeLayers,
        ..LLAMA.rotary
    },
    window: WindowRule::WithoutRope,
    defaults: &[
        ("no_rope_layer_interval", "4"),
        ("num_key_value_heads", "4"),
        ("rope_theta", "2000000.0"),
        ("max_position_embeddings", "32768"),
        ("tie_word_embeddings", "true"),
    ],
    ..LLAMA
};
