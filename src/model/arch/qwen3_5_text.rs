//! Qwen 3.5 (text models, dense): Qwen 3 Next whose delta rule has a linear for each of what it reads.

use super::qwen3_next::{GATED_DELTA, QWEN3_NEXT};
use super::{Architecture, Mixer, Role, linear};

/// The gated delta rule of Qwen 3.5.
pub const GATED_DELTA_SPLIT: Mixer = Mixer {
    inputs: &[
        linear("linear_attn.in_proj_qkv", &[Role::C, Role::B, Role::X]),
        linear("linear_attn.in_proj_z", &[Role::OutputGate]),
    ],
    dense: &[
        linear("linear_attn.in_proj_b", &[Role::Beta]),
        linear("linear_attn.in_proj_a", &[Role::Step]),
    ],
    ..GATED_DELTA
};

pub const QWEN3_5_TEXT: Architecture = Architecture {
    model_type: "qwen3_5_text",
    architecture: "Qwen3_5ForCausalLM",
    mixer: Some(GATED_DELTA_SPLIT),
    experts: None,
    defaults: &[
        ("max_position_embeddings", "32768"),
        ("num_key_value_heads", "4"),
        ("head_dim", "256"),
        ("partial_rotary_factor", "0.25"),
        ("full_attention_interval", "4"),
        ("linear_conv_kernel_dim", "4"),
        ("linear_key_head_dim", "128"),
        ("linear_value_head_dim", "128"),
        ("linear_num_key_heads", "16"),
        ("linear_num_value_heads", "32"),
    ],
    ..QWEN3_NEXT
};
