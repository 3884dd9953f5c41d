//! GPT-NeoX and Pythia: each head's query, key and value together in one tensor; attention and a plain MLP side by side,
//! behind a LayerNorm each.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Joint, LinearSpec, NormKind, NormSite, Role, Split, linear,
    llama_attention, plain_mlp,
};

pub const GPT_NEOX: Architecture = Architecture {
    model_type: "gpt_neox",
    architecture: "GPTNeoXForCausalLM",
    embedding: "gpt_neox.embed_in.weight",
    layers: "gpt_neox.layers",
    final_norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    norm: NormKind::Layer,
    norm_eps: "layer_norm_eps",
    attention: Attention {
        inputs: &[LinearSpec {
            name: "attention.query_key_value",
            parts: &[Role::Q, Role::K, Role::V],
            split: Split::Heads,
        }],
        output: linear("attention.dense", &[Role::O]),
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    mlp: plain_mlp(
        &[linear("mlp.dense_h_to_4h", &[Role::Up])],
        "mlp.dense_4h_to_h",
        Bias::Always,
    ),
    joint: Joint::ParallelIf("use_parallel_residual"),
    aliases: &[
        ("rope_theta", "rotary_emb_base"),
        ("partial_rotary_factor", "rotary_pct"),
    ],
    defaults: &[
        ("hidden_act", "\"gelu\""),
        ("attention_bias", "true"),
        ("use_parallel_residual", "true"),
        ("partial_rotary_factor", "0.25"),
        ("layer_norm_eps", "1e-5"),
        ("max_position_embeddings", "2048"),
    ],
    requires: &[("is_causal", &["true"])],
    ..LLAMA
};
