//! Models that hold a language model among other parts, such as a tower that sees: how its configuration and its tensors are
//! found. What it computes is a row of [`super::ARCHITECTURES`].

use serde_json::Value;

use super::glm4::GLM4;
use super::llama::LLAMA;
use super::mllama_text::MLLAMA_TEXT;
use super::phi3::PHI3;
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
        "mllama",
        "MllamaForConditionalGeneration",
        Text::Of(&MLLAMA_TEXT),
        OUTSIDE_OR_INSIDE,
    )
    .defaults(&[
        ("vocab_size", "128256"),
        ("hidden_size", "4096"),
        ("intermediate_size", "14336"),
        ("num_hidden_layers", "40"),
        ("num_attention_heads", "32"),
    ]),
    composite(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        Text::Named(&gemma::GEMMA),
        OUTSIDE_OR_INSIDE,
    )
    .tied(),
    composite(
        "phi4_multimodal",
        "Phi4MultimodalForCausalLM",
        Text::Of(&PHI3),
        &[ALONE],
    )
    .defaults(&[("max_position_embeddings", "131072")]),
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::model::Model;
    use serde_json::json;

    #[test]
    fn rows_are_in_order() {
        assert!(COMPOSITES.is_sorted_by_key(|row| row.model_type));
        let alone = |row: &&Composite| {
            super::super::ARCHITECTURES
                .iter()
                .all(|arch| arch.model_type != row.model_type)
        };
        assert!(
            COMPOSITES
                .iter()
                .all(|row| alone(&row) && !row.names.is_empty())
        );
    }

    /// As Qwen2-VL-2B was published: all in one object.
    #[test]
    fn early_configs_have_no_part_for_the_language_model() {
        let config = json!({
            "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "image_token_id": 151_655,
            "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768,
            "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "use_sliding_window": false, "vocab_size": 151_936,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "vision_config": {
                "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536,
                "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
            },
        });
        let model = Model::from_config(&config).unwrap();
        assert_eq!((&model.blind, model.model_type()), (&None, "qwen2_vl"));
        assert!(model.config.tie_word_embeddings && model.vision.is_some());
        let axes = &model.config.ropes[0].axes;
        assert_eq!(
            (axes.len(), axes[15], axes[16], axes[40], axes[63]),
            (64, 0, 1, 2, 2)
        );
    }

    /// As Gemma 3 (4B) and LLaVA 1.5 were published: the language model's defaults are left out.
    #[test]
    fn published_configs_leave_out_defaults() {
        let gemma = json!({
            "model_type": "gemma3", "image_token_index": 262_144, "mm_tokens_per_image": 256,
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            },
            "vision_config": {
                "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
                "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": false,
            },
        });
        let config = Model::from_config(&gemma).unwrap().config;
        assert_eq!((config.vocab_size, config.n_heads), (262_208, 8));
        assert_eq!(
            (config.layers[0].n_kv_heads, config.layers[0].head_dim),
            (4, 256)
        );
        assert!(config.tie_word_embeddings);
        let llava = json!({
            "model_type": "llava", "image_token_index": 32000, "tie_word_embeddings": false,
            "text_config": {
                "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
                "model_type": "llama", "pad_token_id": 0, "rms_norm_eps": 1e-5, "torch_dtype": "float16", "vocab_size": 32064,
            },
            "vision_config": {
                "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
                "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
            },
        });
        let model = Model::from_config(&llava).unwrap();
        assert_eq!(
            (model.config.hidden_size, model.config.vocab_size),
            (4096, 32064)
        );
        assert_eq!(model.vision.unwrap().image_token, 32000);
    }

    /// Llama 3.2 Vision of the size of 11B: nothing but the defaults of its class.
    #[test]
    fn layers_that_attend_to_images_are_listed() {
        let mut config = json!({
            "model_type": "mllama", "text_config": {"model_type": "mllama_text_model"},
            "vision_config": {"model_type": "mllama_vision_model", "image_size": 560},
        });
        let model = Model::from_config(&config).unwrap();
        assert_eq!(model.blind, None);
        let looking = (0..40).filter(|&layer| model.layers[layer].config.looks);
        assert_eq!(looking.collect::<Vec<_>>(), [3, 8, 13, 18, 23, 28, 33, 38]);
        let tensors = model.outer_tensors();
        assert_eq!(tensors[0].1, [128_264, 4096]);
        assert_eq!(tensors.last().unwrap().1, [128_256, 4096]);
        assert_eq!(model.config.layers[0].n_kv_heads, 8);
        let vision = model.vision.unwrap();
        assert_eq!(
            (vision.n_looked_at(), vision.image_token),
            (Some(4 * 1601), 128_256)
        );
        let refused = |config: &Value, message: &str| {
            assert_eq!(Model::from_config(config).unwrap_err().to_string(), message);
        };
        config["text_config"]["cross_attention_layers"] = json!([3, 40]);
        refused(
            &config,
            "config.json: text_config.cross_attention_layers is [3,40], expected a list of layers below num_hidden_layers, 40",
        );
        config["text_config"]["cross_attention_layers"] = json!([3]);
        config["tie_word_embeddings"] = true.into();
        refused(
            &config,
            "config.json: text_config.tie_word_embeddings is true, which is not implemented; supported: false",
        );
        config["tie_word_embeddings"] = false.into();
        config["vision_config"]["vision_output_dim"] = 1280.into();
        assert_eq!(
            Model::from_config(&config).unwrap().blind.unwrap(),
            "config.json: vision_config.vision_output_dim is 1280, expected 7680, the layers' outputs"
        );
    }

    #[test]
    fn names_follow_the_checkpoint() {
        let config = json!({
            "model_type": "llava", "image_token_index": 5, "text_config": {"num_hidden_layers": 1},
        });
        for (stored, layer, head, tied) in [
            (
                &[
                    "language_model.model.embed_tokens.weight",
                    "language_model.lm_head.weight",
                ][..],
                "language_model.model.layers.0.self_attn.q_proj",
                "language_model.lm_head",
                false,
            ),
            (
                &["model.language_model.embed_tokens.weight"],
                "model.language_model.layers.0.self_attn.q_proj",
                "lm_head",
                true,
            ),
        ] {
            let mut config = config.clone();
            config["tie_word_embeddings"] = true.into();
            let mut model = Model::from_config(&config).unwrap();
            model.fit(&|name| stored.contains(&name).then(Vec::new));
            let first = model.layers[0].linears().next().unwrap().name.clone();
            assert_eq!(
                (first.as_str(), model.stored_name("lm_head").as_str()),
                (layer, head)
            );
            assert_eq!(model.config.tie_word_embeddings, tied);
        }
    }
}
