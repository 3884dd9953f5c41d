//! Qwen 3 Next: three of four layers mix tokens by a gated delta rule, and attention has an output gate.

use super::qwen2_moe::QWEN2_MOE;
use super::{
    Architecture, Attention, Bias, LinearSpec, Mixer, MixerKind, MixerLayers, NormKind, NormSite,
    Role, Split, linear, llama_attention, llama_mlp,
};

/// A linear that has the rows of each group of heads together.
const fn grouped(name: &'static str, parts: &'static [Role], split: Split) -> LinearSpec {
    LinearSpec { name, parts, split }
}

/// Attention whose output has a gate.
pub const GATED_ATTENTION: Attention = Attention {
    inputs: &[
        grouped(
            "self_attn.q_proj",
            &[Role::Q, Role::AttentionGate],
            Split::QueryHeads,
        ),
        linear("self_attn.k_proj", &[Role::K]),
        linear("self_attn.v_proj", &[Role::V]),
    ],
    ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
};

/// The gated delta rule between its linears; queries, keys and values are `C`, `B` and `X`.
pub const GATED_DELTA: Mixer = Mixer {
    kind: MixerKind::GatedDelta,
    layers: MixerLayers::AllButEvery("linear_attention", "full_attention_interval"),
    inputs: &[grouped(
        "linear_attn.in_proj_qkvz",
        &[Role::C, Role::B, Role::X, Role::OutputGate],
        Split::Groups,
    )],
    dense: &[grouped(
        "linear_attn.in_proj_ba",
        &[Role::Beta, Role::Step],
        Split::Groups,
    )],
    bias: Bias::Never,
    output: linear("linear_attn.out_proj", &[Role::MixerOutput]),
    output_bias: Bias::Never,
    module: "linear_attn",
    convolution: "conv1d",
    convolution_bias: Bias::Never,
    kernel: "linear_conv_kernel_dim",
    norm: NormKind::Rms,
    norm_if: None,
    least_step: None,
};

/// Norms of layers with either mixer.
pub const NORMS: &[(NormSite, &str)] = &[
    (NormSite::Attention, "input_layernorm"),
    (NormSite::Query, "self_attn.q_norm"),
    (NormSite::Key, "self_attn.k_norm"),
    (NormSite::Mixer, "linear_attn.norm"),
    (NormSite::Mlp, "post_attention_layernorm"),
];

pub const QWEN3_NEXT: Architecture = Architecture {
    model_type: "qwen3_next",
    architecture: "Qwen3NextForCausalLM",
    norms: NORMS,
    norm: NormKind::RmsOffset,
    attention: GATED_ATTENTION,
    mixer: Some(GATED_DELTA),
    mlp: llama_mlp(Bias::Never),
    window: super::WindowRule::Never,
    defaults: &[
        ("max_position_embeddings", "32768"),
        ("num_key_value_heads", "2"),
        ("head_dim", "256"),
        ("intermediate_size", "5632"),
        ("partial_rotary_factor", "0.25"),
        ("full_attention_interval", "4"),
        ("linear_conv_kernel_dim", "4"),
        ("linear_key_head_dim", "128"),
        ("linear_value_head_dim", "128"),
        ("linear_num_key_heads", "16"),
        ("linear_num_value_heads", "32"),
        ("norm_topk_prob", "true"),
        ("num_experts", "512"),
        ("num_experts_per_tok", "10"),
        ("moe_intermediate_size", "512"),
        ("shared_expert_intermediate_size", "512"),
    ],
    requires: &[("is_causal", &["true"]), ("hidden_act", &["\"silu\""])],
    ..QWEN2_MOE
};
