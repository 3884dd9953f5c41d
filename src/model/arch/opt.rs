//! OPT: positions are learned, from the third row of their table on.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, NormKind, NormSite, Positions, Role, RopeLayers, Rotary, linear,
    llama_attention, plain_mlp,
};

pub const OPT: Architecture = Architecture {
    model_type: "opt",
    architecture: "OPTForCausalLM",
    embedding: "model.decoder.embed_tokens.weight",
    positions: Some(Positions {
        name: "model.decoder.embed_positions.weight",
        offset: 2,
    }),
    layers: "model.decoder.layers",
    final_norm: "model.decoder.final_layer_norm",
    norms: &[
        (NormSite::Attention, "self_attn_layer_norm"),
        (NormSite::Mlp, "final_layer_norm"),
    ],
    norm: NormKind::Layer,
    norm_eps: "layer_norm_eps",
    attention: Attention {
        output: linear("self_attn.out_proj", &[Role::O]),
        ..llama_attention(Bias::If("enable_bias"), Bias::If("enable_bias"))
    },
    mlp: plain_mlp(
        &[linear("fc1", &[Role::Up])],
        "fc2",
        Bias::If("enable_bias"),
    ),
    rotary: Rotary {
        layers: RopeLayers::Never,
        ..LLAMA.rotary
    },
    aliases: &[
        ("intermediate_size", "ffn_dim"),
        ("hidden_act", "activation_function"),
    ],
    defaults: &[
        ("hidden_act", "\"relu\""),
        ("enable_bias", "true"),
        ("layer_norm_eps", "1e-5"),
        ("max_position_embeddings", "2048"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[
        ("do_layer_norm_before", &["true"]),
        ("layer_norm_elementwise_affine", &["true"]),
        ("_remove_final_layer_norm", &["false"]),
    ],
    ..LLAMA
};
