//! CLIP (Radford et al. 2021, arXiv:2103.00020), SigLIP (Zhai et al. 2023, arXiv:2303.15343) and the form of it whose images
//! have any shape.

use super::super::rows::{
    Eps, Learned, MlpWidth, PatchesForm, Resampling, Tower, TowerAttention, TowerBias, TowerMlp,
    TowerNorm, TowerQueryKeyNorms,
};
use crate::model::NormKind;

pub const CLIP: Tower = Tower {
    model_types: &["clip_vision_model"],
    defaults: &[
        ("hidden_size", "768"),
        ("intermediate_size", "3072"),
        ("num_hidden_layers", "12"),
        ("num_attention_heads", "12"),
        ("image_size", "224"),
        ("patch_size", "32"),
        ("hidden_act", "\"quick_gelu\""),
        ("layer_norm_eps", "1e-5"),
    ],
    width: "hidden_size",
    mlp_width: MlpWidth::Key("intermediate_size"),
    patches: "embeddings.patch_embedding",
    patches_form: PatchesForm::Convolution,
    patches_bias: false,
    patches_norm: None,
    class_token: Some(("embeddings.class_embedding", &[])),
    positions: Some(Learned {
        name: "embeddings.position_embedding.weight",
        wrapped: false,
        resampling: Resampling::Never,
    }),
    rotary: None,
    first_norm: Some("pre_layrnorm"),
    layers: "encoder.layers",
    norm: TowerNorm {
        kind: NormKind::Layer,
        eps: Eps::Key("layer_norm_eps"),
    },
    norm_names: ["layer_norm1", "layer_norm2"],
    norms_after: None,
    attention: TowerAttention {
        inputs: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        bias: TowerBias::Always,
        output: "self_attn.out_proj",
        output_bias: TowerBias::Always,
        norms: TowerQueryKeyNorms::None,
        scale: None,
    },
    mlp: TowerMlp::Plain(["mlp.fc1", "mlp.fc2"], TowerBias::Always),
    scales: None,
    bounded_if: None,
    windows: false,
    padded_tiles: false,
    last_norm: Some("post_layernorm"),
    global: None,
};

pub const SIGLIP: Tower = Tower {
    model_types: &["siglip_vision_model"],
    defaults: &[
        ("hidden_size", "768"),
        ("intermediate_size", "3072"),
        ("num_hidden_layers", "12"),
        ("num_attention_heads", "12"),
        ("image_size", "224"),
        ("patch_size", "16"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("layer_norm_eps", "1e-6"),
    ],
    patches_bias: true,
    class_token: None,
    first_norm: None,
    ..CLIP
};

/// The tower of Phi-4 multimodal (Microsoft 2025, arXiv:2503.01743).
pub const PHI4: Tower = Tower {
    model_types: &["phi4_multimodal_vision", "phi4_multimodal"],
    defaults: &[
        ("hidden_size", "1152"),
        ("intermediate_size", "4304"),
        ("num_hidden_layers", "27"),
        ("num_attention_heads", "16"),
        ("image_size", "448"),
        ("patch_size", "14"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("layer_norm_eps", "1e-6"),
        ("image_token_id", "200010"),
        ("feature_layer", "-2"),
    ],
    padded_tiles: true,
    ..IDEFICS3
};

pub const IDEFICS3: Tower = Tower {
    model_types: &["idefics3_vision", "idefics3", "smolvlm_vision", "smolvlm"],
    defaults: &[
        ("hidden_size", "1152"),
        ("intermediate_size", "3072"),
        ("num_hidden_layers", "12"),
        ("num_attention_heads", "16"),
        ("image_size", "224"),
        ("patch_size", "32"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("layer_norm_eps", "1e-6"),
    ],
    positions: Some(Learned {
        name: "embeddings.position_embedding.weight",
        wrapped: false,
        resampling: Resampling::Nearest,
    }),
    ..SIGLIP
};
