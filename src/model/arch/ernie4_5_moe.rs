//! ERNIE 4.5 with experts.

use super::ernie4_5::ERNIE4_5;
use super::experts::{llama_experts, shared_experts, softmax_router};
use super::{Architecture, Bias, Correction, Experts, Router, SparseLayers};

pub const ERNIE4_5_MOE: Architecture = Architecture {
    model_type: "ernie4_5_moe",
    architecture: "Ernie4_5_MoeForCausalLM",
    experts: Some(Experts {
        layers: SparseLayers::Between {
            first: "moe_layer_start_index",
            last: "moe_layer_end_index",
            interval: "moe_layer_interval",
        },
        bias: Bias::If("use_bias"),
        shared: Some(shared_experts("moe_num_shared_experts")),
        ..llama_experts(Router {
            correction: Some(Correction {
                name: "mlp.moe_statics.e_score_correction_bias",
                is_row: true,
            }),
            ..softmax_router("mlp.gate", Bias::Always)
        })
    }),
    aliases: &[
        ("num_experts", "moe_num_experts"),
        ("num_experts_per_tok", "moe_k"),
    ],
    defaults: &[
        ("num_experts", "64"),
        ("num_experts_per_tok", "6"),
        ("moe_intermediate_size", "1536"),
        ("moe_num_shared_experts", "2"),
        ("moe_layer_start_index", "1"),
        ("num_key_value_heads", "4"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "500000.0"),
        ("tie_word_embeddings", "true"),
        ("max_position_embeddings", "131072"),
    ],
    ..ERNIE4_5
};
