//! Llama 4 (text models): chunks of attention in the layers with positions, temperatures in the others.

use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Mlp, Pairs, QkNorm, Role, RopeLayers, Rotary, Temperature,
    WindowRule, linear, llama_attention,
};

pub const LLAMA4_TEXT: Architecture = Architecture {
    model_type: "llama4_text",
    architecture: "Llama4ForCausalLM",
    attention: Attention {
        qk_norm: QkNorm::PlainTurnedHeads,
        qk_norm_if: Some("use_qk_norm"),
        temperature: Temperature::WithoutRope,
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    mlp: Mlp {
        inputs: &[
            linear("feed_forward.gate_proj", &[Role::Gate]),
            linear("feed_forward.up_proj", &[Role::Up]),
        ],
        output: linear("feed_forward.down_proj", &[Role::Down]),
        bias: Bias::Never,
    },
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        layers: RopeLayers::NoRopeLayers,
        ..LLAMA.rotary
    },
    window: WindowRule::Chunks,
    aliases: &[("intermediate_size", "intermediate_size_mlp")],
    defaults: &[
        ("num_key_value_heads", "8"),
        ("head_dim", "128"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "500000.0"),
        ("max_position_embeddings", "131072"),
        ("no_rope_layer_interval", "4"),
        ("attention_chunk_size", "8192"),
        ("use_qk_norm", "true"),
        ("attn_temperature_tuning", "true"),
        ("floor_scale", "8192"),
        ("attn_scale", "0.1"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("num_local_experts", &["null"]),
    ],
    ..LLAMA
};
