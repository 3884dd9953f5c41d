//! Gemma 4, with eyes and ears: the language model is quantized, what sees and hears is kept.

use super::gemma4_text::GEMMA4_TEXT;
use super::{Architecture, LayerInput};

pub const GEMMA4: Architecture = Architecture {
    model_type: "gemma4",
    architecture: "Gemma4ForConditionalGeneration",
    text: Some("text_config"),
    embedding: "model.language_model.embed_tokens.weight",
    layers: "model.language_model.layers",
    final_norm: "model.language_model.norm",
    layer_input: Some(LayerInput {
        embedding: "model.language_model.embed_tokens_per_layer.weight",
        model_projection: "model.language_model.per_layer_model_projection",
        norm: "model.language_model.per_layer_projection_norm",
        gate: "per_layer_input_gate",
        projection: "per_layer_projection",
    }),
    ..GEMMA4_TEXT
};
