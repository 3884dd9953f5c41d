//! Nemotron H: each layer is either Mamba 2 or attention or an MLP or experts, and nothing knows positions but Mamba's state.

use super::experts::{deepseek_router, expert};
use super::falcon_h1::MAMBA2;
use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Correction, Experts, Mixer, MixerLayers, NormKind, NormSite,
    Role, RopeLayers, Rotary, Router, Shared, SharedWidth, SparseLayers, linear, llama_attention,
    plain_mlp,
};

pub const NEMOTRON_H: Architecture = Architecture {
    model_type: "nemotron_h",
    architecture: "NemotronHForCausalLM",
    embedding: "backbone.embeddings.weight",
    layers: "backbone.layers",
    final_norm: "backbone.norm_f",
    norms: &[
        (NormSite::Attention, "norm"),
        (NormSite::Mixer, "mixer.norm"),
    ],
    norm: NormKind::RmsLast,
    norm_eps: "layer_norm_epsilon",
    attention: Attention {
        inputs: &[
            linear("mixer.q_proj", &[Role::Q]),
            linear("mixer.k_proj", &[Role::K]),
            linear("mixer.v_proj", &[Role::V]),
        ],
        output: linear("mixer.o_proj", &[Role::O]),
        ..llama_attention(Bias::Never, Bias::Never)
    },
    mixer: Some(Mixer {
        layers: MixerLayers::Alone,
        inputs: &[linear("mixer.in_proj", MAMBA2.inputs[0].parts)],
        bias: Bias::If("use_bias"),
        output: linear("mixer.out_proj", &[Role::MixerOutput]),
        output_bias: Bias::If("use_bias"),
        module: "mixer",
        norm_if: None,
        least_step: Some("time_step_min"),
        ..MAMBA2
    }),
    mlp: plain_mlp(
        &[linear("mixer.up_proj", &[Role::Up])],
        "mixer.down_proj",
        Bias::If("mlp_bias"),
    ),
    experts: Some(Experts {
        layers: SparseLayers::All,
        router: Router {
            name: "mixer.gate",
            correction: Some(Correction {
                name: "mixer.gate.e_score_correction_bias",
                is_row: false,
            }),
            ..deepseek_router()
        },
        inputs: &[expert("mixer.experts.{}.up_proj", Role::Up)],
        output: expert("mixer.experts.{}.down_proj", Role::Down),
        bias: Bias::Never,
        shared: Some(Shared {
            inputs: &[linear("mixer.shared_experts.up_proj", &[Role::Up])],
            output: linear("mixer.shared_experts.down_proj", &[Role::Down]),
            width: SharedWidth::By("moe_shared_expert_intermediate_size"),
            gate: None,
        }),
        beside_mlp: false,
    }),
    rotary: Rotary {
        layers: RopeLayers::Never,
        ..LLAMA.rotary
    },
    aliases: &[
        ("hidden_act", "mlp_hidden_act"),
        ("num_experts", "n_routed_experts"),
        ("mamba_n_heads", "mamba_num_heads"),
        ("mamba_d_head", "mamba_head_dim"),
        ("mamba_n_groups", "n_groups"),
        ("mamba_d_state", "ssm_state_size"),
        ("mamba_d_conv", "conv_kernel"),
        ("mamba_conv_bias", "use_conv_bias"),
        ("time_step_min", "mamba_dt_min"),
    ],
    defaults: &[
        ("hidden_act", "\"relu2\""),
        ("num_key_value_heads", "8"),
        ("num_experts", "8"),
        ("num_experts_per_tok", "2"),
        ("moe_intermediate_size", "7688"),
        ("moe_shared_expert_intermediate_size", "7688"),
        ("norm_topk_prob", "true"),
        ("head_dim", "128"),
        ("intermediate_size", "21504"),
        ("layer_norm_epsilon", "1e-5"),
        ("max_position_embeddings", "4096"),
        ("mamba_n_heads", "128"),
        ("mamba_d_head", "64"),
        ("mamba_n_groups", "8"),
        ("mamba_d_state", "128"),
        ("mamba_d_conv", "4"),
        ("mamba_conv_bias", "true"),
        ("time_step_min", "0.001"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("mamba_hidden_act", &["\"silu\""]),
        ("moe_latent_size", &["null"]),
    ],
    ..LLAMA
};
