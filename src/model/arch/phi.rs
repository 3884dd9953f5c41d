//! Phi 1, 1.5 and 2: attention and a plain MLP side by side behind one LayerNorm, biases everywhere.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Joint, NormKind, NormSite, Role, linear, llama_attention,
    plain_mlp,
};

pub const PHI: Architecture = Architecture {
    model_type: "phi",
    architecture: "PhiForCausalLM",
    final_norm: "model.final_layernorm",
    head_bias: Bias::Always,
    norms: &[(NormSite::Attention, "input_layernorm")],
    norm: NormKind::Layer,
    norm_eps: "layer_norm_eps",
    attention: Attention {
        output: linear("self_attn.dense", &[Role::O]),
        ..llama_attention(Bias::Always, Bias::Always)
    },
    mlp: plain_mlp(&[linear("mlp.fc1", &[Role::Up])], "mlp.fc2", Bias::Always),
    joint: Joint::Parallel,
    defaults: &[
        ("hidden_act", "\"gelu_new\""),
        ("partial_rotary_factor", "0.5"),
        ("layer_norm_eps", "1e-5"),
        ("max_position_embeddings", "2048"),
    ],
    requires: &[("is_causal", &["true"]), ("qk_layernorm", &["false"])],
    ..LLAMA
};
