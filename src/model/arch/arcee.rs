//! Arcee: Llama with a plain MLP and the square of relu.

use super::llama::LLAMA;
use super::{Architecture, Bias, Role, linear, plain_mlp};

pub const ARCEE: Architecture = Architecture {
    model_type: "arcee",
    architecture: "ArceeForCausalLM",
    mlp: plain_mlp(
        &[linear("mlp.up_proj", &[Role::Up])],
        "mlp.down_proj",
        Bias::If("mlp_bias"),
    ),
    defaults: &[
        ("hidden_act", "\"relu2\""),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "4096"),
    ],
    ..LLAMA
};
