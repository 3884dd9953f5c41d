//! Qwen 3.5 with experts (text models, as transformers writes them: a tensor for each linear of each expert).

use super::experts::softmax_router;
use super::qwen3_5_text::QWEN3_5_TEXT;
use super::qwen3_next::QWEN3_NEXT;
use super::{Architecture, Bias, Experts, SparseLayers};

/// In every layer; the chosen experts' probabilities always sum to 1.
pub const EXPERTS: Experts = match QWEN3_NEXT.experts {
    Some(experts) => Experts {
        layers: SparseLayers::All,
        router: softmax_router("mlp.gate", Bias::Always),
        ..experts
    },
    None => panic!("Qwen 3 Next has experts"),
};

pub const QWEN3_5_MOE_TEXT: Architecture = Architecture {
    model_type: "qwen3_5_moe_text",
    architecture: "Qwen3_5MoeForCausalLM",
    experts: Some(EXPERTS),
    defaults: &[
        ("max_position_embeddings", "32768"),
        ("num_key_value_heads", "2"),
        ("head_dim", "256"),
        ("intermediate_size", "512"),
        ("partial_rotary_factor", "0.25"),
        ("full_attention_interval", "4"),
        ("linear_conv_kernel_dim", "4"),
        ("linear_key_head_dim", "128"),
        ("linear_value_head_dim", "128"),
        ("linear_num_key_heads", "16"),
        ("linear_num_value_heads", "32"),
        ("num_experts", "256"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "512"),
        ("shared_expert_intermediate_size", "512"),
    ],
    ..QWEN3_5_TEXT
};
