//! LFM2: in most layers a convolution of a few tokens between two gates mixes them.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, LinearSpec, Mixer, MixerKind, MixerLayers, Mlp, NormKind,
    NormSite, Role, linear, llama_attention,
};

/// The convolution between its linears.
const SHORT_CONV: Mixer = Mixer {
    kind: MixerKind::ShortConv,
    layers: MixerLayers::AllButListed("conv", "full_attn_idxs"),
    inputs: &[linear("conv.in_proj", &[Role::B, Role::C, Role::X])],
    dense: &[],
    bias: Bias::If("conv_bias"),
    output: linear("conv.out_proj", &[Role::MixerOutput]),
    output_bias: Bias::If("conv_bias"),
    module: "conv",
    convolution: "conv",
    convolution_bias: Bias::If("conv_bias"),
    kernel: "conv_L_cache",
    norm: NormKind::Rms,
    norm_if: None,
    least_step: None,
};

const MLP_INPUTS: &[LinearSpec] = &[
    linear("feed_forward.w1", &[Role::Gate]),
    linear("feed_forward.w3", &[Role::Up]),
];

pub const LFM2: Architecture = Architecture {
    model_type: "lfm2",
    architecture: "Lfm2ForCausalLM",
    final_norm: "model.embedding_norm",
    norms: &[
        (NormSite::Attention, "operator_norm"),
        (NormSite::Query, "self_attn.q_layernorm"),
        (NormSite::Key, "self_attn.k_layernorm"),
        (NormSite::Mlp, "ffn_norm"),
    ],
    norm_eps: "norm_eps",
    attention: Attention {
        output: linear("self_attn.out_proj", &[Role::O]),
        ..llama_attention(Bias::Never, Bias::Never)
    },
    mixer: Some(SHORT_CONV),
    mlp: Mlp {
        inputs: MLP_INPUTS,
        output: linear("feed_forward.w2", &[Role::Down]),
        bias: Bias::Never,
    },
    aliases: &[
        ("tie_word_embeddings", "tie_embedding"),
        ("intermediate_size", "block_ff_dim"),
    ],
    defaults: &[
        ("num_key_value_heads", "8"),
        ("max_position_embeddings", "128000"),
        ("rope_theta", "1000000.0"),
        ("norm_eps", "1e-5"),
        ("tie_word_embeddings", "true"),
        ("conv_L_cache", "3"),
        ("block_multiple_of", "256"),
        ("block_ffn_dim_multiplier", "1.0"),
        ("block_auto_adjust_ff_dim", "true"),
    ],
    ..LLAMA
};
