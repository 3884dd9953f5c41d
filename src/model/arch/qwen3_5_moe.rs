//! The language model of Qwen 3.5 with experts, as it was published: a tensor for all experts.

use super::experts::{softmax_router, stacked_experts};
use super::qwen3_5_moe_text::{EXPERTS, QWEN3_5_MOE_TEXT};
use super::{Architecture, Bias, Experts};

pub const QWEN3_5_MOE: Architecture = Architecture {
    experts: Some(Experts {
        shared: EXPERTS.shared,
        ..stacked_experts(softmax_router("mlp.gate", Bias::Always))
    }),
    ..QWEN3_5_MOE_TEXT
};
