//! Llama 1 to 3 and what is stored under its names: SmolLM2, TinyLlama, Yi and others.

use super::{Architecture, Bias, NormKind, NormSite, WindowRule, llama_attention, llama_mlp};

pub const LLAMA: Architecture = Architecture {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    embedding: "model.embed_tokens.weight",
    layers: "model.layers",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    norm: NormKind::Rms,
    attention: llama_attention(Bias::AttentionBias, Bias::AttentionBias),
    mlp: llama_mlp(Bias::MlpBias),
    window: WindowRule::Never,
    defaults: &[("max_position_embeddings", 2048)],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
    ],
};
