//! OLMo 2: norms after attention and MLP instead of before, and of all heads' queries and keys together.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, NormKind, NormSite, QkNorm, llama_attention, llama_mlp,
};

pub const OLMO2: Architecture = Architecture {
    model_type: "olmo2",
    architecture: "Olmo2ForCausalLM",
    norms: &[
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::AfterAttention, "post_attention_layernorm"),
        (NormSite::AfterMlp, "post_feedforward_layernorm"),
    ],
    norm: NormKind::RmsLast,
    attention: Attention {
        qk_norm: QkNorm::Whole,
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    mlp: llama_mlp(Bias::Never),
    defaults: &[
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "2048"),
    ],
    ..LLAMA
};
