//! Models that hold a language model among other parts, such as a tower that sees: how its configuration and its tensors are
//! found. What it computes is a row of [`super::ARCHITECTURES`].

use serde_json::Value;

use super::glm4::GLM4;
use super::llama::LLAMA;
use super::qwen2::QWEN2;
use super::qwen3::QWEN3;
use super::{Architecture, gemma, gemma3_text, gemma4_text, glm4_moe, llama4_text, ministral3};
use super::{qwen3_5_moe, qwen3_5_text, qwen3_vl_moe};

/// A model with a language model inside.
#[derive(Debug)]
pub struct Composite {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class that loaders look up.
    pub architecture: &'static str,
    pub text: Text,
    /// Where the language model's tensors are: as published first.
    pub names: &'static [Names],
    /// Whether transformers ties the head to the embedding where the config does not say.
    pub tied: bool,
    /// Whether the axes of its rotary positions take turns, whether the config says so or not.
    pub interleaved: bool,
    /// What transformers takes for keys that the language model's config lacks, as JSON.
    pub defaults: &'static [(&'static str, &'static str)],
}

/// The language model's family.
#[derive(Debug)]
pub enum Text {
    /// This one, whatever the config calls it.
    Of(&'static Architecture),
    /// The one that `text_config.model_type` names; without a name this one.
    Named(&'static Architecture),
}

/// What a family's names begin with inside another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// For `model.`.
    pub model: &'static str,
    /// For `lm_head`.
    pub head: &'static str,
}

/// As files have it that transformers up to 4.51 saved, and that 5 saves.
const OUTSIDE: Names = Names {
    model: "language_model.model.",
    head: "language_model.lm_head",
};
/// As transformers has it in memory since 4.52.
const INSIDE: Names = Names {
    model: "model.language_model.",
    head: "lm_head",
};
/// As if there were nothing but the language model.
const ALONE: Names = Names {
    model: "model.",
    head: "lm_head",
};
const TEXT_MODEL: Names = Names {
    model: "model.text_model.",
    head: "lm_head",
};

const OUTSIDE_OR_INSIDE: &[Names] = &[OUTSIDE, INSIDE];
const INSIDE_OR_ALONE: &[Names] = &[INSIDE, ALONE];
const ALONE_OR_INSIDE: &[Names] = &[ALONE, INSIDE];

const fn composite(
    model_type: &'static str,
    architecture: &'static str,
    text: Text,
    names: &'static [Names],
) -> Composite {
    Composite {
        model_type,
        architecture,
        text,
        names,
        tied: false,
        interleaved: false,
        defaults: &[],
    }
}

impl Composite {
    const fn tied(self) -> Self {
        Self { tied: true, ..self }
    }

    const fn interleaved(self) -> Self {
        Self {
            interleaved: true,
            ..self
        }
    }

    const fn defaults(self, defaults: &'static [(&'static str, &'static str)]) -> Self {
        Self { defaults, ..self }
    }

    /// The language model's part of the config, with what transformers reads from the config itself: whether embeddings are
    /// tied, and where the part does not say, the dtype. Early configs have no part of its own for it.
    pub fn text_config(&self, json: &Value) -> Value {
        let mut config = match json.get("text_config") {
            Some(text) => text.clone(),
            None => json.clone(),
        };
        if let Some(object) = config.as_object_mut() {
            let tied = json.get("tie_word_embeddings").cloned();
            let tied = tied.unwrap_or(Value::Bool(self.tied));
            object.insert("tie_word_embeddings".to_owned(), tied);
            for key in ["dtype", "torch_dtype"] {
                if let Some(value) = json.get(key) {
                    object.entry(key).or_insert_with(|| value.clone());
                }
            }
            for key in ["rope_scaling", "rope_parameters"] {
                if let Some(Value::Object(rope)) = object.get_mut(key).filter(|_| self.interleaved)
                {
                    rope.insert("mrope_interleaved".to_owned(), Value::Bool(true));
                }
            }
            object.retain(|key, _| !matches!(key.as_str(), "vision_config" | "audio_config"));
        }
        let named = config["model_type"].as_str();
        let named = match self.text {
            Text::Of(_) => None,
            Text::Named(arch) => Some(named.unwrap_or(arch.model_type)),
        };
        let sizes = SIZES
            .iter()
            .find(|(model_type, _)| Some(*model_type) == named);
        let sizes = sizes.map_or(&[][..], |(_, sizes)| sizes);
        let config = crate::model::keys::filled(&config, self.defaults);
        crate::model::keys::filled(&config, sizes)
    }
}

/// Published configs of composites leave out sizes of the language model that are transformers' defaults for its family.
const SIZES: &[(&str, &[(&str, &str)])] = &[
    (
        "llama",
        &[
            ("vocab_size", "32000"),
            ("hidden_size", "4096"),
            ("intermediate_size", "11008"),
            ("num_hidden_layers", "32"),
            ("num_attention_heads", "32"),
        ],
    ),
    (
        "mistral",
        &[
            ("vocab_size", "32000"),
            ("hidden_size", "4096"),
            ("intermediate_size", "14336"),
            ("num_hidden_layers", "32"),
            ("num_attention_heads", "32"),
            ("num_key_value_heads", "8"),
        ],
    ),
    (
        "qwen2",
        &[
            ("vocab_size", "151936"),
            ("hidden_size", "4096"),
            ("intermediate_size", "22016"),
            ("num_hidden_layers", "32"),
            ("num_attention_heads", "32"),
        ],
    ),
    (
        "gemma",
        &[
            ("vocab_size", "256000"),
            ("hidden_size", "3072"),
            ("intermediate_size", "24576"),
            ("num_hidden_layers", "28"),
            ("num_attention_heads", "16"),
        ],
    ),
    (
        "gemma2",
        &[
            ("vocab_size", "256000"),
            ("hidden_size", "2304"),
            ("intermediate_size", "9216"),
            ("num_hidden_layers", "26"),
            ("num_attention_heads", "8"),
        ],
    ),
];

pub const COMPOSITES: &[Composite] = &[
    composite(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        Text::Of(&gemma3_text::GEMMA3_TEXT),
        OUTSIDE_OR_INSIDE,
    )
    .tied()
    .defaults(&[
        ("vocab_size", "262208"),
        ("hidden_size", "2304"),
        ("intermediate_size", "9216"),
        ("num_hidden_layers", "26"),
        ("num_attention_heads", "8"),
    ]),
    composite(
        "gemma4",
        "Gemma4ForConditionalGeneration",
        Text::Of(&gemma4_text::GEMMA4_TEXT),
        INSIDE_OR_ALONE,
    )
    .tied(),
    composite(
        "glm4v",
        "Glm4vForConditionalGeneration",
        Text::Of(&GLM4),
        INSIDE_OR_ALONE,
    )
    .defaults(&[
        // A part of the width for each head.
        ("head_dim", "null"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "32768"),
    ]),
    composite(
        "glm4v_moe",
        "Glm4vMoeForConditionalGeneration",
        Text::Of(&glm4_moe::GLM4_MOE),
        INSIDE_OR_ALONE,
    )
    .defaults(&[
        ("attention_bias", "true"),
        ("max_position_embeddings", "65536"),
    ]),
    composite(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        Text::Named(&LLAMA),
        &[TEXT_MODEL],
    ),
    composite(
        "internvl",
        "InternVLForConditionalGeneration",
        Text::Named(&QWEN2),
        OUTSIDE_OR_INSIDE,
    )
    .tied(),
    composite(
        "llama4",
        "Llama4ForConditionalGeneration",
        Text::Of(&llama4_text::LLAMA4_TEXT),
        OUTSIDE_OR_INSIDE,
    ),
    composite(
        "llava",
        "LlavaForConditionalGeneration",
        Text::Named(&LLAMA),
        OUTSIDE_OR_INSIDE,
    ),
    composite(
        "llava_next",
        "LlavaNextForConditionalGeneration",
        Text::Named(&LLAMA),
        OUTSIDE_OR_INSIDE,
    ),
    composite(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        Text::Named(&QWEN2),
        OUTSIDE_OR_INSIDE,
    ),
    composite(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        Text::Named(&ministral3::MINISTRAL3),
        OUTSIDE_OR_INSIDE,
    )
    .tied(),
    composite(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        Text::Named(&gemma::GEMMA),
        OUTSIDE_OR_INSIDE,
    )
    .tied(),
    composite(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        Text::Of(&QWEN2),
        ALONE_OR_INSIDE,
    )
    .defaults(QWEN2_VL_TEXT),
    composite(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        Text::Of(&QWEN2),
        ALONE_OR_INSIDE,
    )
    .defaults(QWEN2_VL_TEXT),
    composite(
        "qwen3_5",
        "Qwen3_5ForConditionalGeneration",
        Text::Of(&qwen3_5_text::QWEN3_5_TEXT),
        INSIDE_OR_ALONE,
    )
    .interleaved(),
    composite(
        "qwen3_5_moe",
        "Qwen3_5MoeForConditionalGeneration",
        Text::Of(&qwen3_5_moe::QWEN3_5_MOE),
        INSIDE_OR_ALONE,
    )
    .interleaved(),
    composite(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        Text::Of(&QWEN3),
        INSIDE_OR_ALONE,
    )
    .interleaved(),
    composite(
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        Text::Of(&qwen3_vl_moe::QWEN3_VL_MOE),
        INSIDE_OR_ALONE,
    )
    .interleaved(),
    composite(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        Text::Named(&LLAMA),
        &[TEXT_MODEL],
    ),
];

const QWEN2_VL_TEXT: &[(&str, &str)] = &[
    ("rms_norm_eps", "1e-5"),
    ("num_key_value_heads", "8"),
    ("max_position_embeddings", "32768"),
];
