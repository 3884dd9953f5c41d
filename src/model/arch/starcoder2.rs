//! StarCoder 2: Llama with LayerNorms, a plain MLP and biases.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormKind, Role, WindowRule, linear, llama_attention, plain_mlp};

pub const STARCODER2: Architecture = Architecture {
    model_type: "starcoder2",
    architecture: "Starcoder2ForCausalLM",
    norm: NormKind::Layer,
    norm_eps: "norm_epsilon",
    attention: llama_attention(Bias::If("use_bias"), Bias::If("use_bias")),
    mlp: plain_mlp(
        &[linear("mlp.c_fc", &[Role::Up])],
        "mlp.c_proj",
        Bias::If("use_bias"),
    ),
    window: WindowRule::EveryLayer,
    defaults: &[
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("num_key_value_heads", "2"),
        ("norm_epsilon", "1e-5"),
        ("use_bias", "true"),
        ("max_position_embeddings", "4096"),
        ("tie_word_embeddings", "true"),
    ],
    ..LLAMA
};
