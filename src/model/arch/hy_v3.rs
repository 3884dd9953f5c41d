//! HunYuan 3: Qwen 3's attention and experts chosen by sigmoids.

use super::experts::{llama_experts, sigmoid_router};
use super::qwen3::QWEN3;
use super::{
    Architecture, Bias, Experts, Role, Router, Shared, SharedWidth, SparseLayers, WindowRule,
    linear, llama_mlp,
};

pub const HY_V3: Architecture = Architecture {
    model_type: "hy_v3",
    architecture: "HYV3ForCausalLM",
    mlp: llama_mlp(Bias::If("mlp_bias")),
    experts: Some(Experts {
        layers: SparseLayers::From("first_k_dense_replace"),
        shared: Some(Shared {
            inputs: &[
                linear("mlp.shared_mlp.gate_proj", &[Role::Gate]),
                linear("mlp.shared_mlp.up_proj", &[Role::Up]),
            ],
            output: linear("mlp.shared_mlp.down_proj", &[Role::Down]),
            width: SharedWidth::Experts("num_shared_experts"),
            gate: None,
        }),
        ..llama_experts(Router {
            scaling: Some("router_scaling_factor"),
            ..sigmoid_router("mlp.router.gate", "mlp.expert_bias")
        })
    }),
    window: WindowRule::Never,
    defaults: &[
        ("num_experts", "192"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "1536"),
        ("num_shared_experts", "1"),
        ("first_k_dense_replace", "1"),
        ("router_scaling_factor", "2.826"),
        ("num_key_value_heads", "8"),
        ("head_dim", "128"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "11158840.0"),
        ("max_position_embeddings", "131072"),
    ],
    ..QWEN3
};
