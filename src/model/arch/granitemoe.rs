//! Granite 3 with experts, stored as one tensor for all of them.

use super::experts::{softmax_router, stacked};
use super::granite::GRANITE;
use super::{Architecture, Bias, Experts, Role, SparseLayers, Stack, StackRows};

const GATE_AND_UP: Stack = Stack {
    weight: "block_sparse_moe.input_linear.weight",
    bias: "",
    transposed: false,
    flat: false,
    rows: StackRows::FirstHalf,
};

pub const GRANITEMOE: Architecture = Architecture {
    model_type: "granitemoe",
    architecture: "GraniteMoeForCausalLM",
    experts: Some(Experts {
        layers: SparseLayers::All,
        router: softmax_router("block_sparse_moe.router.layer", Bias::Always),
        inputs: &[
            stacked(
                "block_sparse_moe.experts.{}.gate_proj",
                Role::Gate,
                GATE_AND_UP,
            ),
            stacked(
                "block_sparse_moe.experts.{}.up_proj",
                Role::Up,
                Stack {
                    rows: StackRows::SecondHalf,
                    ..GATE_AND_UP
                },
            ),
        ],
        output: stacked(
            "block_sparse_moe.experts.{}.down_proj",
            Role::Down,
            Stack {
                weight: "block_sparse_moe.output_linear.weight",
                rows: StackRows::All,
                ..GATE_AND_UP
            },
        ),
        bias: Bias::Never,
        shared: None,
        beside_mlp: false,
    }),
    aliases: &[
        ("num_experts", "num_local_experts"),
        ("moe_intermediate_size", "intermediate_size"),
    ],
    defaults: &[
        ("num_experts", "8"),
        ("num_experts_per_tok", "2"),
        ("embedding_multiplier", "1.0"),
        ("attention_multiplier", "1.0"),
        ("residual_multiplier", "1.0"),
        ("logits_scaling", "1.0"),
        ("max_position_embeddings", "2048"),
    ],
    ..GRANITE
};
