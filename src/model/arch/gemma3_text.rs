//! Gemma 3 (text): Gemma 2 with normalized queries and keys, no caps, and a rotary embedding of its own in the layers with
//! a window: five of six.

use super::gemma2::GEMMA2;
use super::llama::LLAMA;
use super::{Architecture, NormSite, Rotary};

pub const GEMMA3_TEXT: Architecture = Architecture {
    model_type: "gemma3_text",
    architecture: "Gemma3ForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::AfterAttention, "post_attention_layernorm"),
        (NormSite::Mlp, "pre_feedforward_layernorm"),
        (NormSite::AfterMlp, "post_feedforward_layernorm"),
    ],
    rotary: Rotary {
        windowed: Some("rope_local_base_freq"),
        ..LLAMA.rotary
    },
    defaults: &[
        ("num_key_value_heads", "4"),
        ("head_dim", "256"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("query_pre_attn_scalar", "256"),
        ("rope_theta", "1000000.0"),
        ("rope_local_base_freq", "10000.0"),
        ("sliding_window", "4096"),
        ("sliding_window_pattern", "6"),
        ("max_position_embeddings", "131072"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("use_bidirectional_attention", &["false"]),
        // transformers reads it and computes nothing with it.
        ("attn_logit_softcapping", &["null"]),
    ],
    ..GEMMA2
};
