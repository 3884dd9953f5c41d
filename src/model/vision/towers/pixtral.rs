//! Pixtral (Agrawal et al. 2024, arXiv:2410.07073).

use super::super::rows::{
    Axial, Eps, Tower, TowerAttention, TowerBias, TowerMlp, TowerNorm, TowerQueryKeyNorms,
};
use super::clip::CLIP;
use crate::model::NormKind;

pub const PIXTRAL: Tower = Tower {
    model_types: &["pixtral"],
    defaults: &[
        ("hidden_size", "1024"),
        ("intermediate_size", "4096"),
        ("num_hidden_layers", "24"),
        ("num_attention_heads", "16"),
        ("patch_size", "16"),
        ("hidden_act", "\"gelu\""),
    ],
    patches: "patch_conv",
    class_token: None,
    positions: None,
    rotary: Some(Axial::EveryOther),
    first_norm: Some("ln_pre"),
    layers: "transformer.layers",
    norm: TowerNorm {
        kind: NormKind::Rms,
        eps: Eps::Is(1e-5),
    },
    norm_names: ["attention_norm", "ffn_norm"],
    attention: TowerAttention {
        inputs: &["attention.q_proj", "attention.k_proj", "attention.v_proj"],
        bias: TowerBias::Never,
        output: "attention.o_proj",
        output_bias: TowerBias::Never,
        norms: TowerQueryKeyNorms::None,
        scale: None,
    },
    mlp: TowerMlp::Gated(
        [
            "feed_forward.gate_proj",
            "feed_forward.up_proj",
            "feed_forward.down_proj",
        ],
        TowerBias::Never,
    ),
    last_norm: None,
    ..CLIP
};
