//! Granite 3: Llama whose embedding, scores, residual branches and logits are multiplied by numbers in the config.

use super::llama::LLAMA;
use super::{Architecture, Attention, AttentionScale, Bias, Scale, Scales, llama_attention};

pub const GRANITE: Architecture = Architecture {
    model_type: "granite",
    architecture: "GraniteForCausalLM",
    attention: Attention {
        scale: AttentionScale::By("attention_multiplier"),
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    scales: Scales {
        embedding: Scale::By("embedding_multiplier"),
        residual: Scale::By("residual_multiplier"),
        logits: Scale::Over("logits_scaling"),
    },
    defaults: &[
        ("embedding_multiplier", "1.0"),
        ("attention_multiplier", "1.0"),
        ("residual_multiplier", "1.0"),
        ("logits_scaling", "1.0"),
        ("max_position_embeddings", "2048"),
    ],
    ..LLAMA
};
