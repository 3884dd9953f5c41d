//! Helium: Llama with neighbouring dimensions turned together and norms that round last.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormKind, Pairs, Rotary, llama_attention};

pub const HELIUM: Architecture = Architecture {
    model_type: "helium",
    architecture: "HeliumForCausalLM",
    norm: NormKind::RmsLast,
    attention: llama_attention(Bias::If("attention_bias"), Bias::Never),
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        ..LLAMA.rotary
    },
    defaults: &[
        ("num_key_value_heads", "20"),
        ("head_dim", "128"),
        ("rms_norm_eps", "1e-8"),
        ("rope_theta", "100000.0"),
        ("max_position_embeddings", "4096"),
    ],
    ..LLAMA
};
