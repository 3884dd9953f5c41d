//! Apertus: Llama with a plain MLP, whose activation has numbers of its own in each layer, and normalized queries and keys.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormSite, Role, linear, llama_attention, plain_mlp};

pub const APERTUS: Architecture = Architecture {
    model_type: "apertus",
    architecture: "ApertusForCausalLM",
    norms: &[
        (NormSite::Attention, "attention_layernorm"),
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::Mlp, "feedforward_layernorm"),
    ],
    attention: llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias")),
    mlp: plain_mlp(
        &[linear("mlp.up_proj", &[Role::Up])],
        "mlp.down_proj",
        Bias::Never,
    ),
    defaults: &[
        ("hidden_act", "\"xielu\""),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "65536"),
        (
            "rope_parameters",
            r#"{"rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0, "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0}"#,
        ),
    ],
    ..LLAMA
};
