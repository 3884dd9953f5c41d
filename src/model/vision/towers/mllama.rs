//! Llama 3.2 Vision (Meta 2024, arXiv:2407.21783, section 7): all tiles of an image in one sequence, first in layers of which some
//! keep their outputs, then in layers with gates.

use super::super::rows::{
    Eps, MlpWidth, Tower, TowerAttention, TowerBias, TowerMlp, TowerNorm, TowerScales,
};
use super::clip::CLIP;
use crate::model::NormKind;

pub const MLLAMA: Tower = Tower {
    global: Some(&GLOBAL),
    ..LOCAL
};

const LOCAL: Tower = Tower {
    model_types: &["mllama_vision_model"],
    defaults: &[
        ("hidden_size", "1280"),
        ("intermediate_size", "5120"),
        ("num_hidden_layers", "32"),
        ("num_global_layers", "8"),
        ("attention_heads", "16"),
        ("image_size", "448"),
        ("patch_size", "14"),
        ("hidden_act", "\"gelu\""),
        ("norm_eps", "1e-5"),
        ("max_num_tiles", "4"),
        ("intermediate_layers_indices", "[3, 7, 15, 23, 30]"),
        (
            "supported_aspect_ratios",
            "[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]",
        ),
        ("vision_output_dim", "7680"),
    ],
    mlp_width: MlpWidth::Key("intermediate_size"),
    patches: "patch_embedding",
    class_token: Some(("class_embedding", &[])),
    // Both are the tiled tower's own.
    positions: None,
    first_norm: None,
    layers: "transformer.layers",
    norm: TowerNorm {
        kind: NormKind::Layer,
        eps: Eps::Key("norm_eps"),
    },
    norm_names: ["input_layernorm", "post_attention_layernorm"],
    attention: TowerAttention {
        bias: TowerBias::Never,
        output: "self_attn.o_proj",
        output_bias: TowerBias::Never,
        ..CLIP.attention
    },
    mlp: TowerMlp::Plain(["mlp.fc1", "mlp.fc2"], TowerBias::Always),
    last_norm: None,
    ..CLIP
};

const GLOBAL: Tower = Tower {
    layers: "global_transformer.layers",
    scales: Some(TowerScales::Gates(["gate_attn", "gate_ffn"])),
    ..LOCAL
};
