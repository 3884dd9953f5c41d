//! Falcon: one head of keys and values or a group of query heads for each, attention and MLP side by side or not.

use super::bloom::BLOOM;
use super::llama::LLAMA;
use super::{
    Alibi, Architecture, Attention, Bias, Joint, KvHeads, NormSite, RopeLayers, Rotary,
    llama_attention, plain_mlp,
};

/// 7B: one norm for attention and MLP.
pub const FALCON: Architecture = Architecture {
    model_type: "falcon",
    architecture: "FalconForCausalLM",
    embedding_norm: None,
    norms: &[(NormSite::Attention, "input_layernorm")],
    attention: Attention {
        alibi: Alibi::ScaledIf("alibi"),
        ..Attention {
            inputs: BLOOM.attention.inputs,
            output: BLOOM.attention.output,
            ..llama_attention(Bias::If("bias"), Bias::If("bias"))
        }
    },
    mlp: plain_mlp(BLOOM.mlp.inputs, "mlp.dense_4h_to_h", Bias::If("bias")),
    kv_heads: KvHeads::OneIf("multi_query"),
    joint: Joint::Parallel,
    rotary: Rotary {
        layers: RopeLayers::Unless("alibi"),
        ..LLAMA.rotary
    },
    aliases: &[
        ("hidden_size", "n_embed"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("intermediate_size", "ffn_hidden_size"),
        ("hidden_act", "activation"),
    ],
    defaults: &[
        ("hidden_act", "\"gelu\""),
        ("layer_norm_epsilon", "1e-5"),
        ("multi_query", "true"),
        ("max_position_embeddings", "2048"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[("num_ln_in_parallel_attn", &["1"])],
    ..BLOOM
};

/// RefinedWeb 1B: one after the other.
pub const FALCON_SEQUENTIAL: Architecture = Architecture {
    when: &[("parallel_attn", "false")],
    norms: BLOOM.norms,
    joint: Joint::Sequential,
    ..FALCON
};

/// 40B and 180B: a norm each, and a group of query heads for each head of keys and values.
pub const FALCON_GROUPED: Architecture = Architecture {
    when: &[("new_decoder_architecture", "true")],
    norms: &[(NormSite::Attention, "ln_attn"), (NormSite::Mlp, "ln_mlp")],
    kv_heads: KvHeads::By("num_kv_heads"),
    requires: &[
        ("parallel_attn", &["true"]),
        ("num_ln_in_parallel_attn", &["2"]),
    ],
    ..FALCON
};

/// 11B: the same with one norm for both.
pub const FALCON_GROUPED_ONE_NORM: Architecture = Architecture {
    when: &[
        ("new_decoder_architecture", "true"),
        ("num_ln_in_parallel_attn", "1"),
    ],
    norms: FALCON.norms,
    requires: &[("parallel_attn", &["true"])],
    ..FALCON_GROUPED
};
