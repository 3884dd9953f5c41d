//! The language model of Llama 3.2 Vision: Llama 3, and layers between that attend to images.

use super::llama::LLAMA;
use super::{Architecture, CrossAttention, NormSite, Role, linear};

pub const MLLAMA_TEXT: Architecture = Architecture {
    model_type: "mllama_text_model",
    architecture: "MllamaForCausalLM",
    more_embeddings: 8,
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "cross_attn.q_norm"),
        (NormSite::Key, "cross_attn.k_norm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    cross_attention: Some(CrossAttention {
        layers: "cross_attention_layers",
        query: linear("cross_attn.q_proj", &[Role::Q]),
        keys_values: &[
            linear("cross_attn.k_proj", &[Role::K]),
            linear("cross_attn.v_proj", &[Role::V]),
        ],
        output: linear("cross_attn.o_proj", &[Role::O]),
        gates: ["cross_attn_attn_gate", "cross_attn_mlp_gate"],
    }),
    defaults: &[
        ("cross_attention_layers", "[3, 8, 13, 18, 23, 28, 33, 38]"),
        ("max_position_embeddings", "131072"),
        ("num_key_value_heads", "8"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "500000.0"),
    ],
    // The embedding has more rows than a head can have.
    requires: &[("tie_word_embeddings", &["false"])],
    ..LLAMA
};
