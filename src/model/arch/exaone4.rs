//! EXAONE 4: norms after attention and MLP instead of before, normalized queries and keys, positions only where there is
//! a window.

use super::llama::LLAMA;
use super::{
    Architecture, Bias, NormSite, RopeLayers, Rotary, WindowRule, llama_attention, llama_mlp,
};

pub const EXAONE4: Architecture = Architecture {
    model_type: "exaone4",
    architecture: "Exaone4ForCausalLM",
    norms: &[
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::AfterAttention, "post_attention_layernorm"),
        (NormSite::AfterMlp, "post_feedforward_layernorm"),
    ],
    attention: llama_attention(Bias::Never, Bias::Never),
    mlp: llama_mlp(Bias::Never),
    rotary: Rotary {
        layers: RopeLayers::Windowed,
        ..LLAMA.rotary
    },
    window: WindowRule::AllButEvery("sliding_window_pattern"),
    defaults: &[
        ("num_key_value_heads", "32"),
        ("rms_norm_eps", "1e-5"),
        ("sliding_window", "4096"),
        ("sliding_window_pattern", "4"),
        ("max_position_embeddings", "2048"),
    ],
    ..LLAMA
};
