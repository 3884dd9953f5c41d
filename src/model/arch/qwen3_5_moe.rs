//! Qwen 3.5 with experts, with eyes, as it was published: a tensor for all experts.

use super::experts::{softmax_router, stacked_experts};
use super::qwen3_5::QWEN3_5;
use super::qwen3_5_moe_text::{EXPERTS, QWEN3_5_MOE_TEXT};
use super::{Architecture, Bias, Experts};

pub const QWEN3_5_MOE: Architecture = Architecture {
    model_type: "qwen3_5_moe",
    architecture: "Qwen3_5MoeForConditionalGeneration",
    experts: Some(Experts {
        shared: EXPERTS.shared,
        ..stacked_experts(softmax_router("mlp.gate", Bias::Always))
    }),
    defaults: QWEN3_5_MOE_TEXT.defaults,
    ..QWEN3_5
};
