//! GPT-2: positions are learned, and the linears are stored transposed.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, NormKind, NormSite, Positions, Role, RopeLayers, Rotary, linear,
    llama_attention, plain_mlp,
};

pub const GPT2: Architecture = Architecture {
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    embedding: "transformer.wte.weight",
    positions: Some(Positions {
        name: "transformer.wpe.weight",
        offset: 0,
    }),
    layers: "transformer.h",
    final_norm: "transformer.ln_f",
    norms: &[(NormSite::Attention, "ln_1"), (NormSite::Mlp, "ln_2")],
    norm: NormKind::Layer,
    norm_eps: "layer_norm_epsilon",
    attention: Attention {
        inputs: &[linear("attn.c_attn", &[Role::Q, Role::K, Role::V])],
        output: linear("attn.c_proj", &[Role::O]),
        ..llama_attention(Bias::Always, Bias::Always)
    },
    mlp: plain_mlp(
        &[linear("mlp.c_fc", &[Role::Up])],
        "mlp.c_proj",
        Bias::Always,
    ),
    four_times_wide: true,
    transposed: true,
    rotary: Rotary {
        layers: RopeLayers::Never,
        ..LLAMA.rotary
    },
    aliases: &[
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("intermediate_size", "n_inner"),
        ("hidden_act", "activation_function"),
    ],
    defaults: &[
        ("hidden_act", "\"gelu_new\""),
        ("layer_norm_epsilon", "1e-5"),
        ("max_position_embeddings", "1024"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[
        ("scale_attn_weights", &["true"]),
        ("scale_attn_by_inverse_layer_idx", &["false"]),
        ("add_cross_attention", &["false"]),
    ],
    ..LLAMA
};
