//! OLMo 1: Llama whose norms store nothing.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormKind, llama_mlp};

pub const OLMO: Architecture = Architecture {
    model_type: "olmo",
    architecture: "OlmoForCausalLM",
    norm: NormKind::LayerPlain,
    // The code has a constant, the config no key.
    norm_eps: "layer_norm_eps",
    mlp: llama_mlp(Bias::Never),
    defaults: &[
        ("layer_norm_eps", "1e-5"),
        ("max_position_embeddings", "2048"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("layer_norm_eps", &["1e-5"]),
        ("clip_qkv", &["null"]),
    ],
    ..LLAMA
};
