//! Falcon H1: Mamba 2 and attention side by side in every layer, and a multiplier for nearly every linear.

use super::llama::LLAMA;
use super::{
    Architecture, Bias, LinearSpec, Mixer, MixerKind, MixerLayers, Mlp, Multipliers, NormKind,
    NormSite, Role, Scale, Scales, linear,
};

const IN_PROJ: &[Role] = &[Role::OutputGate, Role::X, Role::B, Role::C, Role::Step];

/// Mamba 2 between its linears.
pub const MAMBA2: Mixer = Mixer {
    kind: MixerKind::Mamba2,
    layers: MixerLayers::Beside,
    inputs: &[linear("mamba.in_proj", IN_PROJ)],
    dense: &[],
    bias: Bias::Never,
    output: linear("mamba.out_proj", &[Role::MixerOutput]),
    output_bias: Bias::If("projectors_bias"),
    module: "mamba",
    convolution: "conv1d",
    convolution_bias: Bias::If("mamba_conv_bias"),
    kernel: "mamba_d_conv",
    norm: NormKind::RmsLast,
    norm_if: Some("mamba_rms_norm"),
    least_step: None,
};

const MLP_INPUTS: &[LinearSpec] = &[
    linear("feed_forward.gate_proj", &[Role::Gate]),
    linear("feed_forward.up_proj", &[Role::Up]),
];

pub const FALCON_H1: Architecture = Architecture {
    model_type: "falcon_h1",
    architecture: "FalconH1ForCausalLM",
    final_norm: "model.final_layernorm",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Mixer, "mamba.norm"),
        (NormSite::Mlp, "pre_ff_layernorm"),
    ],
    mixer: Some(MAMBA2),
    mlp: Mlp {
        inputs: MLP_INPUTS,
        output: linear("feed_forward.down_proj", &[Role::Down]),
        bias: Bias::If("mlp_bias"),
    },
    scales: Scales {
        embedding: Scale::By("embedding_multiplier"),
        residual: Scale::One,
        logits: Scale::By("lm_head_multiplier"),
    },
    multipliers: Some(Multipliers {
        attention_input: "attention_in_multiplier",
        key: "key_multiplier",
        attention_output: "attention_out_multiplier",
        mixer_input: "ssm_in_multiplier",
        mixer_parts: "ssm_multipliers",
        mixer_output: "ssm_out_multiplier",
        mlp: "mlp_multipliers",
    }),
    defaults: &[
        ("num_key_value_heads", "8"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "8192"),
        ("mamba_d_ssm", "1024"),
        ("mamba_n_heads", "128"),
        ("mamba_n_groups", "1"),
        ("mamba_d_state", "256"),
        ("mamba_d_conv", "4"),
        ("mamba_expand", "2"),
        ("mamba_conv_bias", "true"),
        ("mamba_norm_before_gate", "true"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("hidden_act", &["\"silu\""]),
        ("attention_bias", &["false"]),
        ("mamba_proj_bias", &["false"]),
    ],
    ..LLAMA
};
