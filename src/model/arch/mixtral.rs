//! Mixtral: Mistral with experts.

use super::experts::{expert, softmax_router};
use super::mistral::MISTRAL;
use super::{Architecture, Bias, Experts, Role, SparseLayers};

pub const MIXTRAL_EXPERTS: Experts = Experts {
    layers: SparseLayers::All,
    router: softmax_router("block_sparse_moe.gate", Bias::Always),
    inputs: &[
        expert("block_sparse_moe.experts.{}.w1", Role::Gate),
        expert("block_sparse_moe.experts.{}.w3", Role::Up),
    ],
    output: expert("block_sparse_moe.experts.{}.w2", Role::Down),
    bias: Bias::Never,
    shared: None,
    beside_mlp: false,
};

pub const MIXTRAL: Architecture = Architecture {
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    experts: Some(MIXTRAL_EXPERTS),
    aliases: &[
        ("num_experts", "num_local_experts"),
        ("moe_intermediate_size", "intermediate_size"),
    ],
    defaults: &[
        ("num_experts", "8"),
        ("num_experts_per_tok", "2"),
        ("num_key_value_heads", "8"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "1e6"),
        ("sliding_window", "null"),
        ("max_position_embeddings", "131072"),
    ],
    ..MISTRAL
};
