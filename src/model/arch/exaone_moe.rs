//! K-EXAONE: EXAONE 4's windows before norms, and DeepSeek's experts.

use super::experts::{deepseek_router, llama_experts, shared_experts};
use super::qwen3::QWEN3;
use super::{
    Architecture, Bias, Correction, Experts, RopeLayers, Rotary, Router, SparseLayers, WindowRule,
    llama_attention,
};

pub const EXAONE_MOE: Architecture = Architecture {
    model_type: "exaone_moe",
    architecture: "ExaoneMoeForCausalLM",
    attention: llama_attention(Bias::Never, Bias::Never),
    experts: Some(Experts {
        layers: SparseLayers::From("first_k_dense_replace"),
        shared: Some(shared_experts("num_shared_experts")),
        ..llama_experts(Router {
            correction: Some(Correction {
                name: "mlp.e_score_correction_bias",
                is_row: false,
            }),
            ..deepseek_router()
        })
    }),
    rotary: Rotary {
        layers: RopeLayers::Windowed,
        ..QWEN3.rotary
    },
    window: WindowRule::AllButEvery("sliding_window_pattern"),
    defaults: &[
        ("num_experts", "64"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "1024"),
        ("num_shared_experts", "1"),
        ("first_k_dense_replace", "1"),
        ("norm_topk_prob", "true"),
        ("routed_scaling_factor", "2.5"),
        ("num_key_value_heads", "32"),
        ("rms_norm_eps", "1e-5"),
        ("sliding_window", "4096"),
        ("sliding_window_pattern", "4"),
        ("max_position_embeddings", "2048"),
    ],
    ..QWEN3
};
