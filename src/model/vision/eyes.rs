//! Which family sees with what.

use super::rows::{Eps, Eyes, Positions, Prefixes, Selection, Sight, Step, StepBias, Tiles, Width};
use crate::model::NormKind;

pub const EYES: &[&Eyes] = &[
    &GEMMA3,
    &GEMMA4,
    &GLM4V,
    &IDEFICS3,
    &INTERNVL,
    &LLAVA,
    &LLAVA_NEXT,
    &LLAVA_ONEVISION,
    &MISTRAL3,
    &MLLAMA,
    &PALIGEMMA,
    &PHI4,
    &QWEN2_VL,
    &QWEN3_VL,
];

/// Names in files from transformers up to 4, from 5, and as 5 has them in memory.
const LLAVA_PREFIXES: &[Prefixes] = &[
    Prefixes {
        tower: "vision_tower.vision_model.",
        projector: "multi_modal_projector.",
        newline: "image_newline",
    },
    Prefixes {
        tower: "vision_tower.",
        projector: "multi_modal_projector.",
        newline: "image_newline",
    },
    Prefixes {
        tower: "model.vision_tower.vision_model.",
        projector: "model.multi_modal_projector.",
        newline: "model.image_newline",
    },
    Prefixes {
        tower: "model.vision_tower.",
        projector: "model.multi_modal_projector.",
        newline: "model.image_newline",
    },
];

const PROJECTOR_BIAS: StepBias = StepBias::Key("multimodal_projector_bias", true);

const LLAVA: Eyes = Eyes {
    model_types: &["llava"],
    tower: "clip_vision_model",
    defaults: &[
        ("vision_feature_layer", "-2"),
        ("vision_feature_select_strategy", "\"default\""),
        ("projector_hidden_act", "\"gelu\""),
    ],
    prefixes: LLAVA_PREFIXES,
    selection: Selection::Layer,
    projector: &[
        Step::Linear("linear_1", Width::Text, PROJECTOR_BIAS),
        Step::Activation("projector_hidden_act"),
        Step::Linear("linear_2", Width::Text, PROJECTOR_BIAS),
    ],
    deepstack: None,
    tiles: Tiles::Each,
    image_token: &["image_token_id", "image_token_index"],
    positions: Positions::Line,
    sight: Sight::Causal,
    looked_at: false,
};

const LLAVA_NEXT: Eyes = Eyes {
    model_types: &["llava_next"],
    tiles: Tiles::Unpadded,
    ..LLAVA
};

const LLAVA_ONEVISION: Eyes = Eyes {
    model_types: &["llava_onevision"],
    tower: "siglip_vision_model",
    defaults: &[
        ("vision_feature_layer", "-1"),
        ("vision_feature_select_strategy", "\"full\""),
        ("projector_hidden_act", "\"gelu\""),
        ("vision_aspect_ratio", "\"anyres_max_9\""),
    ],
    tiles: Tiles::UnpaddedAtMost,
    ..LLAVA
};

const MISTRAL3: Eyes = Eyes {
    model_types: &["mistral3"],
    tower: "pixtral",
    defaults: &[
        ("vision_feature_layer", "-1"),
        // Pixtral has no class token to leave out.
        ("vision_feature_select_strategy", "\"full\""),
        ("projector_hidden_act", "\"gelu\""),
        ("spatial_merge_size", "2"),
    ],
    projector: &[
        Step::Norm("norm", NormKind::Rms, Eps::Text),
        Step::MergeChannels,
        Step::Linear("patch_merger.merging_layer", Width::Tower, StepBias::Never),
        Step::Linear(
            "linear_1",
            Width::Text,
            StepBias::Key("multimodal_projector_bias", false),
        ),
        Step::Activation("projector_hidden_act"),
        Step::Linear(
            "linear_2",
            Width::Text,
            StepBias::Key("multimodal_projector_bias", false),
        ),
    ],
    ..LLAVA
};

const MLLAMA: Eyes = Eyes {
    model_types: &["mllama"],
    tower: "mllama_vision_model",
    defaults: &[("image_token_index", "128256")],
    prefixes: &[
        Prefixes {
            tower: "vision_model.",
            projector: "",
            newline: "",
        },
        Prefixes {
            tower: "model.vision_model.",
            projector: "model.",
            newline: "",
        },
    ],
    selection: Selection::Tiled,
    projector: &[Step::Linear(
        "multi_modal_projector",
        Width::Text,
        StepBias::Always,
    )],
    looked_at: true,
    ..LLAVA
};

const INTERNVL: Eyes = Eyes {
    model_types: &["internvl"],
    tower: "internvl_vision",
    defaults: &[
        ("vision_feature_layer", "-1"),
        ("vision_feature_select_strategy", "\"default\""),
        ("projector_hidden_act", "\"gelu\""),
        ("downsample_ratio", "0.5"),
    ],
    selection: Selection::LayerOrLast,
    projector: &[
        Step::Merge,
        Step::Norm("layer_norm", NormKind::Layer, Eps::Is(1e-5)),
        Step::Linear("linear_1", Width::Text, StepBias::Always),
        Step::Activation("projector_hidden_act"),
        Step::Linear("linear_2", Width::Text, StepBias::Always),
    ],
    ..LLAVA
};

const GEMMA3: Eyes = Eyes {
    model_types: &["gemma3"],
    tower: "siglip_vision_model",
    defaults: &[("mm_tokens_per_image", "256")],
    selection: Selection::Last,
    projector: &[
        Step::Pool,
        Step::Norm(
            "mm_soft_emb_norm",
            NormKind::RmsOffset,
            Eps::Key("layer_norm_eps"),
        ),
        Step::Matrix("mm_input_projection_weight", Width::Text),
    ],
    sight: Sight::OwnImage,
    ..LLAVA
};

/// Audio stays unheard.
const GEMMA4: Eyes = Eyes {
    model_types: &["gemma4"],
    tower: "gemma4_vision",
    defaults: &[("image_token_id", "258880")],
    prefixes: &[Prefixes {
        tower: "model.vision_tower.",
        projector: "model.",
        newline: "",
    }],
    selection: Selection::Last,
    projector: &[
        Step::PoolBy("pooling_kernel_size"),
        Step::Standardize("vision_tower."),
        Step::PlainNorm(Eps::Key("rms_norm_eps")),
        Step::Linear(
            "embed_vision.embedding_projection",
            Width::Text,
            StepBias::Never,
        ),
    ],
    image_token: &["image_token_id"],
    sight: Sight::OwnImageInWindows,
    ..LLAVA
};

/// Its positions start at 1, which changes no rotary product.
const PALIGEMMA: Eyes = Eyes {
    model_types: &["paligemma"],
    tower: "siglip_vision_model",
    defaults: &[],
    selection: Selection::Last,
    projector: &[Step::Linear("linear", Width::Text, StepBias::Always)],
    sight: Sight::WholeImage,
    ..LLAVA
};

const PHI4: Eyes = Eyes {
    model_types: &["phi4_multimodal"],
    tower: "phi4_multimodal_vision",
    defaults: &[],
    prefixes: &[Prefixes {
        tower: "model.embed_tokens_extend.image_embed.img_processor.",
        projector: "model.embed_tokens_extend.image_embed.",
        newline: "",
    }],
    selection: Selection::TowerLayer,
    projector: &[
        Step::Linear("img_projection_up", Width::Text, StepBias::Always),
        Step::Gelu,
        Step::Linear("img_projection_down", Width::Text, StepBias::Always),
    ],
    tiles: Tiles::Crops,
    // Of `vision_config`.
    image_token: &["image_token_id"],
    ..LLAVA
};

const IDEFICS3: Eyes = Eyes {
    model_types: &["idefics3", "smolvlm"],
    tower: "idefics3_vision",
    defaults: &[("scale_factor", "2")],
    prefixes: &[Prefixes {
        tower: "model.vision_model.",
        projector: "model.connector.",
        newline: "",
    }],
    selection: Selection::Last,
    projector: &[
        Step::Merge,
        Step::Linear("modality_projection.proj", Width::Text, StepBias::Never),
    ],
    image_token: &["image_token_id"],
    ..LLAVA
};

const VISUAL: &[Prefixes] = &[
    Prefixes {
        tower: "visual.",
        projector: "visual.",
        newline: "",
    },
    Prefixes {
        tower: "model.visual.",
        projector: "model.visual.",
        newline: "",
    },
];

const QWEN2_VL: Eyes = Eyes {
    model_types: &["qwen2_vl", "qwen2_5_vl"],
    tower: "qwen2_vl",
    defaults: &[],
    prefixes: VISUAL,
    selection: Selection::Last,
    // Qwen2.5-VL's norms are root mean square norms.
    projector: &[
        Step::TowerNorm("merger.ln_q"),
        Step::Merge,
        Step::Linear("merger.mlp.0", Width::Input, StepBias::Always),
        Step::Gelu,
        Step::Linear("merger.mlp.2", Width::Text, StepBias::Always),
    ],
    image_token: &["image_token_id"],
    positions: Positions::Grid,
    ..LLAVA
};

const QWEN3_VL: Eyes = Eyes {
    model_types: &["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"],
    tower: "qwen3_vl",
    projector: &[
        Step::TowerNorm("merger.norm"),
        Step::Merge,
        Step::Linear("merger.linear_fc1", Width::Input, StepBias::Always),
        Step::Gelu,
        Step::Linear("merger.linear_fc2", Width::Text, StepBias::Always),
    ],
    deepstack: Some((
        "deepstack_merger_list",
        &[
            Step::Merge,
            Step::TowerNorm("norm"),
            Step::Linear("linear_fc1", Width::Input, StepBias::Always),
            Step::Gelu,
            Step::Linear("linear_fc2", Width::Text, StepBias::Always),
        ],
    )),
    ..QWEN2_VL
};

const GLM4V: Eyes = Eyes {
    model_types: &["glm4v", "glm4v_moe"],
    tower: "glm4v",
    projector: &[
        Step::MergeChannels,
        Step::Convolution("downsample", Width::Text),
        Step::Linear("merger.proj", Width::Input, StepBias::Never),
        Step::Norm(
            "merger.post_projection_norm",
            NormKind::Layer,
            Eps::Is(1e-5),
        ),
        Step::Gelu,
        Step::Gated(["merger.gate_proj", "merger.up_proj", "merger.down_proj"]),
    ],
    ..QWEN2_VL
};
