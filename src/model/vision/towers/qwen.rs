//! The towers of Qwen2-VL (Wang et al. 2024, arXiv:2409.12191), Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923) and Qwen3-VL.

use super::super::rows::{
    Axial, Eps, Learned, MlpWidth, Resampling, Tower, TowerAttention, TowerBias, TowerMlp,
    TowerNorm, TowerQueryKeyNorms,
};
use super::clip::CLIP;
use crate::model::NormKind;

pub const QWEN2_VL: Tower = Tower {
    model_types: &["qwen2_vl_vision", "qwen2_vl"],
    defaults: &[
        ("depth", "32"),
        ("embed_dim", "1280"),
        ("num_heads", "16"),
        ("mlp_ratio", "4"),
        ("patch_size", "14"),
        ("spatial_merge_size", "2"),
        ("temporal_patch_size", "2"),
        ("hidden_act", "\"quick_gelu\""),
    ],
    width: "embed_dim",
    mlp_width: MlpWidth::Ratio("mlp_ratio"),
    patches: "patch_embed.proj",
    class_token: None,
    positions: None,
    rotary: Some(Axial::SameFrequencies),
    first_norm: None,
    layers: "blocks",
    norm: TowerNorm {
        kind: NormKind::Layer,
        eps: Eps::Is(1e-6),
    },
    norm_names: ["norm1", "norm2"],
    attention: TowerAttention {
        inputs: &["attn.qkv"],
        bias: TowerBias::Always,
        output: "attn.proj",
        output_bias: TowerBias::Always,
        norms: TowerQueryKeyNorms::None,
        scale: None,
    },
    last_norm: None,
    ..CLIP
};

pub const QWEN2_5_VL: Tower = Tower {
    model_types: &["qwen2_5_vl_vision", "qwen2_5_vl"],
    defaults: &[
        ("depth", "32"),
        ("hidden_size", "3584"),
        ("intermediate_size", "3420"),
        ("num_heads", "16"),
        ("patch_size", "14"),
        ("spatial_merge_size", "2"),
        ("temporal_patch_size", "2"),
        ("window_size", "112"),
        ("fullatt_block_indexes", "[7, 15, 23, 31]"),
        ("hidden_act", "\"silu\""),
    ],
    width: "hidden_size",
    mlp_width: MlpWidth::Key("intermediate_size"),
    norm: TowerNorm {
        kind: NormKind::Rms,
        eps: Eps::Is(1e-6),
    },
    mlp: TowerMlp::Gated(
        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        TowerBias::Always,
    ),
    windows: true,
    ..QWEN2_VL
};

pub const QWEN3_VL: Tower = Tower {
    model_types: &[
        "qwen3_vl_vision",
        "qwen3_vl",
        "qwen3_vl_moe_vision",
        "qwen3_vl_moe",
        "qwen3_5_vision",
        "qwen3_5",
        "qwen3_5_moe_vision",
        "qwen3_5_moe",
    ],
    defaults: &[
        ("depth", "27"),
        ("hidden_size", "1152"),
        ("intermediate_size", "4304"),
        ("num_heads", "16"),
        ("patch_size", "16"),
        ("spatial_merge_size", "2"),
        ("temporal_patch_size", "2"),
        ("num_position_embeddings", "2304"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
    ],
    width: "hidden_size",
    mlp_width: MlpWidth::Key("intermediate_size"),
    patches_bias: true,
    positions: Some(Learned {
        name: "pos_embed.weight",
        wrapped: false,
        resampling: Resampling::Bilinear,
    }),
    mlp: TowerMlp::Plain(["mlp.linear_fc1", "mlp.linear_fc2"], TowerBias::Always),
    ..QWEN2_VL
};
