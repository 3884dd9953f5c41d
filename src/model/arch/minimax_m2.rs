//! MiniMax M2: Mixtral's experts chosen by sigmoids; queries and keys are normalized over all heads, and a part of each
//! turns.

use super::experts::sigmoid_router;
use super::mixtral::{MIXTRAL, MIXTRAL_EXPERTS};
use super::{
    Architecture, Attention, Bias, Experts, NormSite, QkNorm, Rotary, WindowRule, llama_attention,
};

pub const MINIMAX_M2: Architecture = Architecture {
    model_type: "minimax_m2",
    architecture: "MiniMaxM2ForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    attention: Attention {
        qk_norm: QkNorm::Whole,
        ..llama_attention(Bias::Never, Bias::Never)
    },
    experts: Some(Experts {
        router: sigmoid_router(
            "block_sparse_moe.gate",
            "block_sparse_moe.e_score_correction_bias",
        ),
        ..MIXTRAL_EXPERTS
    }),
    rotary: Rotary {
        dim: Some("rotary_dim"),
        ..MIXTRAL.rotary
    },
    window: WindowRule::Never,
    defaults: &[
        ("num_experts", "256"),
        ("num_experts_per_tok", "8"),
        ("num_key_value_heads", "8"),
        ("head_dim", "128"),
        ("rope_theta", "5e6"),
        ("max_position_embeddings", "196608"),
    ],
    requires: &[("is_causal", &["true"])],
    ..MIXTRAL
};
