//! Nemotron 3 and 4, Minitron: LayerNorms that store `w - 1`, a plain MLP with the square of relu, half of each head turned.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormKind, Role, linear, plain_mlp};

pub const NEMOTRON: Architecture = Architecture {
    model_type: "nemotron",
    architecture: "NemotronForCausalLM",
    norm: NormKind::LayerOffset,
    norm_eps: "norm_eps",
    mlp: plain_mlp(
        &[linear("mlp.up_proj", &[Role::Up])],
        "mlp.down_proj",
        Bias::If("mlp_bias"),
    ),
    defaults: &[
        ("hidden_act", "\"relu2\""),
        ("partial_rotary_factor", "0.5"),
        ("norm_eps", "1e-5"),
        ("max_position_embeddings", "4096"),
    ],
    requires: &[("is_causal", &["true"])],
    ..LLAMA
};
