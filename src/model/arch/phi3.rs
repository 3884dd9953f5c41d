//! Phi 3, 3.5 and 4: Llama with Q, K and V in one tensor, gate and up in another.

use super::llama::LLAMA;
use super::{Architecture, Attention, Bias, Mlp, Role, WindowRule, linear, llama_attention};

pub const PHI3: Architecture = Architecture {
    model_type: "phi3",
    architecture: "Phi3ForCausalLM",
    attention: Attention {
        inputs: &[linear("self_attn.qkv_proj", &[Role::Q, Role::K, Role::V])],
        ..llama_attention(Bias::Never, Bias::Never)
    },
    mlp: Mlp {
        inputs: &[linear("mlp.gate_up_proj", &[Role::Gate, Role::Up])],
        output: linear("mlp.down_proj", &[Role::Down]),
        bias: Bias::Never,
    },
    window: WindowRule::EveryLayer,
    defaults: &[
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "4096"),
        ("original_max_position_embeddings", "4096"),
    ],
    requires: &[("is_causal", &["true"])],
    ..LLAMA
};
