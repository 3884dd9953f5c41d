//! GLM 4 (`glm`): gate and up in one tensor, half of each head turned, neighbouring dimensions together.

use super::llama::LLAMA;
use super::{Architecture, Bias, Mlp, Pairs, Role, Rotary, linear, llama_attention};

pub const GLM: Architecture = Architecture {
    model_type: "glm",
    architecture: "GlmForCausalLM",
    attention: llama_attention(Bias::If("attention_bias"), Bias::Never),
    mlp: Mlp {
        inputs: &[linear("mlp.gate_up_proj", &[Role::Gate, Role::Up])],
        output: linear("mlp.down_proj", &[Role::Down]),
        bias: Bias::Never,
    },
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        ..LLAMA.rotary
    },
    defaults: &[
        ("num_key_value_heads", "2"),
        ("head_dim", "128"),
        ("attention_bias", "true"),
        ("partial_rotary_factor", "0.5"),
        ("rms_norm_eps", "1.5625e-7"),
        ("max_position_embeddings", "131072"),
    ],
    requires: &[("is_causal", &["true"])],
    ..LLAMA
};
