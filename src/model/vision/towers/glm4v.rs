//! The tower of GLM-4.1V (arXiv:2507.01006).

use super::super::rows::{
    Eps, Learned, MlpWidth, Resampling, Tower, TowerAttention, TowerBias, TowerMlp, TowerNorm,
};
use super::qwen::QWEN2_VL;
use crate::model::NormKind;

pub const GLM4V: Tower = Tower {
    model_types: &["glm4v_vision", "glm4v", "glm4v_moe_vision", "glm4v_moe"],
    defaults: &[
        ("depth", "24"),
        ("hidden_size", "1536"),
        ("intermediate_size", "13696"),
        ("out_hidden_size", "4096"),
        ("num_heads", "12"),
        ("image_size", "336"),
        ("patch_size", "14"),
        ("spatial_merge_size", "2"),
        ("temporal_patch_size", "2"),
        ("rms_norm_eps", "1e-5"),
        ("hidden_act", "\"silu\""),
    ],
    width: "hidden_size",
    mlp_width: MlpWidth::Key("out_hidden_size"),
    patches_bias: true,
    patches_norm: Some("post_conv_layernorm"),
    positions: Some(Learned {
        name: "embeddings.position_embedding.weight",
        wrapped: false,
        resampling: Resampling::Bicubic,
    }),
    norm: TowerNorm {
        kind: NormKind::Rms,
        eps: Eps::Key("rms_norm_eps"),
    },
    attention: TowerAttention {
        bias: TowerBias::If("attention_bias"),
        output_bias: TowerBias::Never,
        ..QWEN2_VL.attention
    },
    mlp: TowerMlp::Gated(
        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        TowerBias::Never,
    ),
    last_norm: Some("post_layernorm"),
    ..QWEN2_VL
};
