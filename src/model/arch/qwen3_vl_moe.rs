//! The language model of Qwen3-VL with experts: `qwen3_moe`, with a tensor for all experts, stored `[in, out]`.

use super::experts::{llama_experts, softmax_router, stacked};
use super::qwen3_moe::QWEN3_MOE;
use super::{Architecture, Bias, ExpertLinear, Experts, Role, SparseLayers, Stack, StackRows};

const GATE: Stack = Stack {
    weight: "mlp.experts.gate_up_proj",
    bias: "",
    transposed: true,
    flat: false,
    rows: StackRows::FirstHalf,
};
const INPUTS: &[ExpertLinear] = &[
    stacked("mlp.experts.{}.gate_proj", Role::Gate, GATE),
    stacked(
        "mlp.experts.{}.up_proj",
        Role::Up,
        Stack {
            rows: StackRows::SecondHalf,
            ..GATE
        },
    ),
];

pub const QWEN3_VL_MOE: Architecture = Architecture {
    experts: Some(Experts {
        layers: SparseLayers::SparseStep,
        inputs: INPUTS,
        output: stacked(
            "mlp.experts.{}.down_proj",
            Role::Down,
            Stack {
                weight: "mlp.experts.down_proj",
                rows: StackRows::All,
                ..GATE
            },
        ),
        // The chosen experts' probabilities always sum to 1.
        ..llama_experts(softmax_router("mlp.gate", Bias::Always))
    }),
    ..QWEN3_MOE
};
