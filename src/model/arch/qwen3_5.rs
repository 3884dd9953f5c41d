//! Qwen 3.5 (dense), with eyes: the language model is quantized, what sees is kept.

use super::Architecture;
use super::qwen3_5_text::QWEN3_5_TEXT;

pub const QWEN3_5: Architecture = Architecture {
    model_type: "qwen3_5",
    architecture: "Qwen3_5ForConditionalGeneration",
    text: Some("text_config"),
    embedding: "model.language_model.embed_tokens.weight",
    layers: "model.language_model.layers",
    final_norm: "model.language_model.norm",
    ..QWEN3_5_TEXT
};
