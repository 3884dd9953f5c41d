//! HunYuan with experts.

use super::experts::{llama_experts, softmax_router};
use super::hunyuan_v1_dense::HUNYUAN_V1_DENSE;
use super::{Architecture, Bias, Experts, Role, Shared, SharedWidth, linear};

pub const HUNYUAN_V1_MOE: Architecture = Architecture {
    model_type: "hunyuan_v1_moe",
    architecture: "HunYuanMoEV1ForCausalLM",
    experts: Some(Experts {
        shared: Some(Shared {
            inputs: &[
                linear("mlp.shared_mlp.gate_proj", &[Role::Gate]),
                linear("mlp.shared_mlp.up_proj", &[Role::Up]),
            ],
            output: linear("mlp.shared_mlp.down_proj", &[Role::Down]),
            width: SharedWidth::By("intermediate_size"),
            gate: None,
        }),
        ..llama_experts(softmax_router("mlp.gate.wg", Bias::Always))
    }),
    aliases: &[
        ("num_experts_per_tok", "moe_topk"),
        ("moe_intermediate_size", "intermediate_size"),
    ],
    ..HUNYUAN_V1_DENSE
};
