//! Gemma 4's tower: layers with four norms, positions by row and by column.

use super::super::rows::{
    Axial, Eps, Learned, PatchesForm, Resampling, Tower, TowerAttention, TowerBias, TowerMlp,
    TowerNorm, TowerQueryKeyNorms,
};
use super::clip::CLIP;
use crate::model::NormKind;

pub const GEMMA4: Tower = Tower {
    model_types: &["gemma4_vision", "gemma4"],
    defaults: &[
        ("hidden_size", "768"),
        ("intermediate_size", "3072"),
        ("num_hidden_layers", "16"),
        ("num_attention_heads", "12"),
        ("num_key_value_heads", "12"),
        ("head_dim", "64"),
        ("hidden_activation", "\"gelu_pytorch_tanh\""),
        ("rms_norm_eps", "1e-6"),
        ("rope_theta", "100"),
        ("pooling_kernel_size", "3"),
        ("patch_size", "16"),
        ("position_embedding_size", "10240"),
    ],
    patches: "patch_embedder.input_proj",
    patches_form: PatchesForm::Linear,
    class_token: None,
    positions: Some(Learned {
        name: "patch_embedder.position_embedding_table",
        wrapped: false,
        resampling: Resampling::ByAxis,
    }),
    rotary: Some(Axial::ByHalves),
    first_norm: None,
    layers: "encoder.layers",
    norm: TowerNorm {
        kind: NormKind::RmsLast,
        eps: Eps::Key("rms_norm_eps"),
    },
    norm_names: ["input_layernorm", "pre_feedforward_layernorm"],
    norms_after: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    attention: TowerAttention {
        inputs: &[
            "self_attn.q_proj.linear",
            "self_attn.k_proj.linear",
            "self_attn.v_proj.linear",
        ],
        bias: TowerBias::Never,
        output: "self_attn.o_proj.linear",
        output_bias: TowerBias::Never,
        norms: TowerQueryKeyNorms::Heads(["self_attn.q_norm", "self_attn.k_norm"]),
        scale: Some(1.0),
    },
    mlp: TowerMlp::Gated(
        [
            "mlp.gate_proj.linear",
            "mlp.up_proj.linear",
            "mlp.down_proj.linear",
        ],
        TowerBias::Never,
    ),
    bounded_if: Some("use_clipped_linears"),
    last_norm: None,
    ..CLIP
};
