//! InternViT (Chen et al. 2023, arXiv:2312.14238).

use super::super::rows::{
    Learned, Resampling, Tower, TowerAttention, TowerBias, TowerMlp, TowerQueryKeyNorms,
    TowerScales,
};
use super::clip::CLIP;

pub const INTERNVL: Tower = Tower {
    model_types: &["internvl_vision"],
    defaults: &[
        ("hidden_size", "1024"),
        ("intermediate_size", "4096"),
        ("num_hidden_layers", "24"),
        ("num_attention_heads", "16"),
        ("image_size", "[448, 448]"),
        ("patch_size", "[14, 14]"),
        ("hidden_act", "\"gelu\""),
        ("layer_norm_eps", "1e-6"),
        ("norm_type", "\"layer_norm\""),
        ("use_mean_pooling", "true"),
    ],
    patches: "embeddings.patch_embeddings.projection",
    patches_bias: true,
    class_token: Some(("embeddings.cls_token", &[1, 1])),
    positions: Some(Learned {
        name: "embeddings.position_embeddings",
        wrapped: true,
        resampling: Resampling::Bicubic,
    }),
    first_norm: None,
    layers: "encoder.layer",
    norm_names: ["layernorm_before", "layernorm_after"],
    attention: TowerAttention {
        inputs: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        bias: TowerBias::If("attention_bias"),
        output: "attention.projection_layer",
        output_bias: TowerBias::Always,
        norms: TowerQueryKeyNorms::Whole(["attention.q_norm", "attention.k_norm"], "use_qk_norm"),
        scale: None,
    },
    mlp: TowerMlp::Plain(["mlp.fc1", "mlp.fc2"], TowerBias::Always),
    scales: Some(TowerScales::Channels(["lambda_1", "lambda_2"])),
    // Unless `use_mean_pooling`.
    last_norm: Some("layernorm"),
    ..CLIP
};
