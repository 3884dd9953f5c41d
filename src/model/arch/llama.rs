//! Llama 1 to 3 and what is stored under its names: SmolLM2, TinyLlama, Yi and others.

use super::{
    Architecture, Bias, Joint, KvHeads, NormKind, NormSite, Pairs, RopeLayers, Rotary, Scale,
    Scales, WindowRule, llama_attention, llama_mlp,
};

pub const LLAMA: Architecture = Architecture {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    when: &[],
    embedding: "model.embed_tokens.weight",
    more_embeddings: 0,
    positions: None,
    embedding_norm: None,
    layers: "model.layers",
    final_norm: "model.norm",
    head: "lm_head",
    head_bias: Bias::Never,
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    norm: NormKind::Rms,
    norm_eps: "rms_norm_eps",
    attention: llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias")),
    mixer: None,
    cross_attention: None,
    mlp: llama_mlp(Bias::If("mlp_bias")),
    experts: None,
    layer_input: None,
    layer_scale: None,
    four_times_wide: false,
    transposed: false,
    kv_heads: KvHeads::By("num_key_value_heads"),
    joint: Joint::Sequential,
    rotary: Rotary {
        pairs: Pairs::Halves,
        layers: RopeLayers::All,
        windowed: None,
        alpha: false,
        dim: None,
    },
    window: WindowRule::Never,
    scales: Scales {
        embedding: Scale::One,
        residual: Scale::One,
        logits: Scale::One,
    },
    multipliers: None,
    aliases: &[],
    synonyms: &[],
    defaults: &[("max_position_embeddings", "2048")],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
    ],
};
