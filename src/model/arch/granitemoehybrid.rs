//! Granite 4: layers of Mamba 2, and some of attention; with experts beside the MLP, or without.

use super::falcon_h1::MAMBA2;
use super::granite::GRANITE;
use super::granitemoeshared::GRANITEMOESHARED;
use super::{
    Architecture, Bias, Mixer, MixerLayers, Mlp, NormKind, NormSite, Role, RopeLayers, Rotary,
    linear,
};

pub const GRANITEMOEHYBRID: Architecture = Architecture {
    model_type: "granitemoehybrid",
    architecture: "GraniteMoeHybridForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Mixer, "mamba.norm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    mixer: Some(Mixer {
        layers: MixerLayers::AllButEvery("linear_attention", "full_attention_interval"),
        bias: Bias::If("mamba_proj_bias"),
        output_bias: Bias::If("mamba_proj_bias"),
        norm: NormKind::Rms,
        norm_if: None,
        ..MAMBA2
    }),
    mlp: Mlp {
        inputs: &[linear("shared_mlp.input_linear", &[Role::Gate, Role::Up])],
        output: linear("shared_mlp.output_linear", &[Role::Down]),
        bias: Bias::Never,
    },
    experts: GRANITEMOESHARED.experts,
    rotary: Rotary {
        layers: RopeLayers::AllIfRope,
        ..GRANITE.rotary
    },
    aliases: &[
        ("layer_types", "layers_block_type"),
        ("num_experts", "num_local_experts"),
        ("moe_intermediate_size", "intermediate_size"),
        ("intermediate_size", "shared_intermediate_size"),
    ],
    defaults: &[
        ("num_experts", "8"),
        ("num_experts_per_tok", "2"),
        ("moe_intermediate_size", "11008"),
        ("intermediate_size", "1024"),
        ("shared_intermediate_size", "1024"),
        ("embedding_multiplier", "1.0"),
        ("attention_multiplier", "1.0"),
        ("residual_multiplier", "1.0"),
        ("logits_scaling", "1.0"),
        ("max_position_embeddings", "2048"),
        ("mamba_n_heads", "128"),
        ("mamba_n_groups", "1"),
        ("mamba_d_state", "256"),
        ("mamba_d_conv", "4"),
        ("mamba_expand", "2"),
        ("mamba_conv_bias", "true"),
    ],
    requires: &[("is_causal", &["true"]), ("hidden_act", &["\"silu\""])],
    ..GRANITE
};
