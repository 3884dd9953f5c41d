//! BLOOM: positions are slopes on the scores, and the embedding is normalized.

use super::llama::LLAMA;
use super::{
    Alibi, Architecture, Attention, Bias, LinearSpec, NormKind, Role, RopeLayers, Rotary, Split,
    linear, llama_attention, plain_mlp,
};

pub const BLOOM: Architecture = Architecture {
    model_type: "bloom",
    architecture: "BloomForCausalLM",
    embedding: "transformer.word_embeddings.weight",
    embedding_norm: Some("transformer.word_embeddings_layernorm"),
    layers: "transformer.h",
    final_norm: "transformer.ln_f",
    norm: NormKind::Layer,
    norm_eps: "layer_norm_epsilon",
    attention: Attention {
        inputs: &[LinearSpec {
            name: "self_attention.query_key_value",
            parts: &[Role::Q, Role::K, Role::V],
            split: Split::Heads,
        }],
        // vLLM sorts their rows by queries, keys and values along the first dimension, which is columns once they are packed.
        float_inputs: true,
        output: linear("self_attention.dense", &[Role::O]),
        alibi: Alibi::Always,
        ..llama_attention(Bias::Always, Bias::Always)
    },
    mlp: plain_mlp(
        &[linear("mlp.dense_h_to_4h", &[Role::Up])],
        "mlp.dense_4h_to_h",
        Bias::Always,
    ),
    four_times_wide: true,
    rotary: Rotary {
        layers: RopeLayers::Never,
        ..LLAMA.rotary
    },
    aliases: &[
        ("hidden_size", "n_embed"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
    defaults: &[
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("layer_norm_epsilon", "1e-5"),
        ("max_position_embeddings", "2048"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[("apply_residual_connection_post_layernorm", &["false"])],
    ..LLAMA
};
