//! MPT: positions are slopes on the scores, and nothing has a bias.

use super::llama::LLAMA;
use super::{
    Alibi, Architecture, Attention, Bias, NormKind, NormSite, Role, RopeLayers, Rotary, linear,
    llama_attention, plain_mlp,
};

pub const MPT: Architecture = Architecture {
    model_type: "mpt",
    architecture: "MptForCausalLM",
    embedding: "transformer.wte.weight",
    layers: "transformer.blocks",
    final_norm: "transformer.norm_f",
    norms: &[(NormSite::Attention, "norm_1"), (NormSite::Mlp, "norm_2")],
    norm: NormKind::LayerWeight,
    norm_eps: "layer_norm_epsilon",
    attention: Attention {
        inputs: &[linear("attn.Wqkv", &[Role::Q, Role::K, Role::V])],
        output: linear("attn.out_proj", &[Role::O]),
        clip: Some("clip_qkv"),
        alibi: Alibi::Always,
        ..llama_attention(Bias::Never, Bias::Never)
    },
    mlp: plain_mlp(
        &[linear("ffn.up_proj", &[Role::Up])],
        "ffn.down_proj",
        Bias::Never,
    ),
    four_times_wide: true,
    rotary: Rotary {
        layers: RopeLayers::Never,
        ..LLAMA.rotary
    },
    aliases: &[
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
        ("max_position_embeddings", "max_seq_len"),
        ("clip_qkv", "attn_config.clip_qkv"),
        ("alibi", "attn_config.alibi"),
        ("prefix_lm", "attn_config.prefix_lm"),
        ("qk_ln", "attn_config.qk_ln"),
        ("softmax_scale", "attn_config.softmax_scale"),
        ("alibi_bias_max", "attn_config.alibi_bias_max"),
    ],
    defaults: &[
        ("hidden_act", "\"gelu\""),
        ("layer_norm_epsilon", "1e-5"),
        ("max_position_embeddings", "2048"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[
        ("no_bias", &["true"]),
        ("alibi", &["true"]),
        ("prefix_lm", &["false"]),
        ("logit_scale", &["null"]),
        ("expansion_ratio", &["4"]),
        ("qk_ln", &["false"]),
        ("softmax_scale", &["null"]),
        ("alibi_bias_max", &["8"]),
    ],
    ..LLAMA
};
