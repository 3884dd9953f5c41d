//! Llama 1 to 3 and what is stored under its names: SmolLM2, TinyLlama, Yi and others.

use super::{Architecture, Bias, GATED_STAGES, NormKind, NormSite, WindowRule, llama_linears};

pub const LLAMA: Architecture = Architecture {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    embedding: "model.embed_tokens.weight",
    layers: "model.layers",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    linears: &llama_linears(Bias::AttentionBias, Bias::AttentionBias, Bias::MlpBias),
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    stages: GATED_STAGES,
    norm: NormKind::Rms,
    window: WindowRule::Never,
    defaults: &[("max_position_embeddings", 2048)],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
    ],
};
