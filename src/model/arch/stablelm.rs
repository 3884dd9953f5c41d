//! StableLM 2 and 3B: Llama with LayerNorms and a quarter of each head turned; some have attention and MLP side by side.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormKind, llama_attention, llama_mlp};

pub const STABLELM: Architecture = Architecture {
    model_type: "stablelm",
    architecture: "StableLmForCausalLM",
    norm: NormKind::Layer,
    norm_eps: "layer_norm_eps",
    attention: llama_attention(Bias::If("use_qkv_bias"), Bias::Never),
    mlp: llama_mlp(Bias::Never),
    defaults: &[
        ("partial_rotary_factor", "0.25"),
        ("num_key_value_heads", "32"),
        ("layer_norm_eps", "1e-5"),
        ("max_position_embeddings", "4096"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("use_parallel_residual", &["false"]),
        ("qk_layernorm", &["false"]),
    ],
    ..LLAMA
};
