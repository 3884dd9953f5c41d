//! GPT-J: attention and MLP behind one norm, and a part of each head turns.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Joint, NormKind, NormSite, Pairs, Role, Rotary, linear,
    llama_attention, plain_mlp,
};

pub const GPTJ: Architecture = Architecture {
    model_type: "gptj",
    architecture: "GPTJForCausalLM",
    embedding: "transformer.wte.weight",
    layers: "transformer.h",
    final_norm: "transformer.ln_f",
    head_bias: Bias::Always,
    norms: &[(NormSite::Attention, "ln_1")],
    norm: NormKind::Layer,
    norm_eps: "layer_norm_epsilon",
    attention: Attention {
        inputs: &[
            linear("attn.q_proj", &[Role::Q]),
            linear("attn.k_proj", &[Role::K]),
            linear("attn.v_proj", &[Role::V]),
        ],
        output: linear("attn.out_proj", &[Role::O]),
        ..llama_attention(Bias::Never, Bias::Never)
    },
    mlp: plain_mlp(
        &[linear("mlp.fc_in", &[Role::Up])],
        "mlp.fc_out",
        Bias::Always,
    ),
    joint: Joint::Parallel,
    four_times_wide: true,
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        dim: Some("rotary_dim"),
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
        ("rotary_dim", "64"),
        ("max_position_embeddings", "2048"),
    ],
    requires: &[],
    ..LLAMA
};
