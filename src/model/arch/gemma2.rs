//! Gemma 2: norms before and after attention and MLP, capped scores and logits, a window in every other layer.

use super::gemma::GEMMA;
use super::{Architecture, Attention, AttentionScale, Bias, NormSite, WindowRule, llama_attention};

pub const GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    architecture: "Gemma2ForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::AfterAttention, "post_attention_layernorm"),
        (NormSite::Mlp, "pre_feedforward_layernorm"),
        (NormSite::AfterMlp, "post_feedforward_layernorm"),
    ],
    attention: Attention {
        scale: AttentionScale::OverRootOf("query_pre_attn_scalar"),
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    window: WindowRule::AllButEvery("sliding_window_pattern"),
    aliases: &[("hidden_act", "hidden_activation")],
    synonyms: &[],
    defaults: &[
        ("num_key_value_heads", "4"),
        ("head_dim", "256"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("query_pre_attn_scalar", "256"),
        ("attn_logit_softcapping", "50.0"),
        ("final_logit_softcapping", "30.0"),
        ("sliding_window", "4096"),
        ("sliding_window_pattern", "2"),
        ("max_position_embeddings", "8192"),
        ("tie_word_embeddings", "true"),
    ],
    ..GEMMA
};
