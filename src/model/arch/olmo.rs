//! OLMo 1: Llama whose norms store nothing, and whose queries, keys and values may be clipped.

use super::llama::LLAMA;
use super::{Architecture, Attention, Bias, NormKind, llama_attention, llama_mlp};

pub const OLMO: Architecture = Architecture {
    model_type: "olmo",
    architecture: "OlmoForCausalLM",
    norm: NormKind::LayerPlain,
    // The code has a constant, the config no key.
    norm_eps: "layer_norm_eps",
    attention: Attention {
        clip: Some("clip_qkv"),
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    mlp: llama_mlp(Bias::Never),
    defaults: &[
        ("layer_norm_eps", "1e-5"),
        ("max_position_embeddings", "2048"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("layer_norm_eps", &["1e-5"]),
    ],
    ..LLAMA
};
