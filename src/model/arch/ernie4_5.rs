//! ERNIE 4.5 (dense): Llama with neighbouring dimensions turned together, and one switch for all biases.

use super::llama::LLAMA;
use super::{Architecture, Bias, Pairs, Rotary, llama_attention, llama_mlp};

pub const ERNIE4_5: Architecture = Architecture {
    model_type: "ernie4_5",
    architecture: "Ernie4_5ForCausalLM",
    attention: llama_attention(Bias::If("use_bias"), Bias::If("use_bias")),
    mlp: llama_mlp(Bias::If("use_bias")),
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        ..LLAMA.rotary
    },
    defaults: &[
        ("num_key_value_heads", "2"),
        ("head_dim", "128"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "500000.0"),
        ("max_position_embeddings", "131072"),
        ("tie_word_embeddings", "true"),
    ],
    ..LLAMA
};
