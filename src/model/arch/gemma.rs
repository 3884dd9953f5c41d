//! Gemma 1: Llama with norms that store `w - 1`, a scaled embedding and GELU.

use super::llama::LLAMA;
use super::{Architecture, Bias, NormKind, Scale, Scales, llama_mlp};

pub const GEMMA: Architecture = Architecture {
    model_type: "gemma",
    architecture: "GemmaForCausalLM",
    norm: NormKind::RmsOffset,
    mlp: llama_mlp(Bias::Never),
    scales: Scales {
        embedding: Scale::RootOfHidden,
        ..LLAMA.scales
    },
    // transformers takes the approximation for either name.
    synonyms: &[("hidden_act", "gelu", "gelu_pytorch_tanh")],
    defaults: &[
        ("num_key_value_heads", "16"),
        ("head_dim", "256"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("max_position_embeddings", "8192"),
        ("tie_word_embeddings", "true"),
    ],
    ..LLAMA
};
