//! Granite 3 and 4 with experts and an MLP for all tokens beside them.

use super::granitemoe::GRANITEMOE;
use super::{Architecture, Experts, Role, Shared, SharedWidth, linear};

pub const GRANITEMOESHARED: Architecture = Architecture {
    model_type: "granitemoeshared",
    architecture: "GraniteMoeSharedForCausalLM",
    experts: match GRANITEMOE.experts {
        Some(experts) => Some(Experts {
            shared: Some(Shared {
                inputs: &[linear("shared_mlp.input_linear", &[Role::Gate, Role::Up])],
                output: linear("shared_mlp.output_linear", &[Role::Down]),
                width: SharedWidth::By("shared_intermediate_size"),
                gate: None,
            }),
            ..experts
        }),
        None => None,
    },
    ..GRANITEMOE
};
