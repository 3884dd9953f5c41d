//! HunYuan (dense): Llama whose queries and keys are normalized after they were turned.

use super::llama::LLAMA;
use super::{Architecture, Attention, Bias, NormSite, QkNorm, Rotary, llama_attention, llama_mlp};

pub const HUNYUAN_V1_DENSE: Architecture = Architecture {
    model_type: "hunyuan_v1_dense",
    architecture: "HunYuanDenseV1ForCausalLM",
    attention: Attention {
        qk_norm: QkNorm::TurnedHeads,
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    mlp: llama_mlp(Bias::Never),
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "self_attn.query_layernorm"),
        (NormSite::Key, "self_attn.key_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    rotary: Rotary {
        alpha: true,
        ..LLAMA.rotary
    },
    defaults: &[
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "2048"),
    ],
    ..LLAMA
};
