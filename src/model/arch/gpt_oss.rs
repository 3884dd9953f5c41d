//! gpt-oss: experts with biases and a clamped activation, sinks in attention, and windows in every other layer.

use super::experts::{softmax_router, stacked};
use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Experts, Role, Router, SparseLayers, Stack, StackRows,
    WindowRule, llama_attention,
};

const GATE_AND_UP: Stack = Stack {
    weight: "mlp.experts.gate_up_proj",
    bias: "mlp.experts.gate_up_proj_bias",
    transposed: true,
    flat: false,
    rows: StackRows::Even,
};

pub const GPT_OSS: Architecture = Architecture {
    model_type: "gpt_oss",
    architecture: "GptOssForCausalLM",
    attention: Attention {
        sinks: Some("self_attn.sinks"),
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    experts: Some(Experts {
        layers: SparseLayers::All,
        router: Router {
            bias: Bias::Always,
            ..softmax_router("mlp.router", Bias::Always)
        },
        inputs: &[
            stacked("mlp.experts.{}.gate_proj", Role::Gate, GATE_AND_UP),
            stacked(
                "mlp.experts.{}.up_proj",
                Role::Up,
                Stack {
                    rows: StackRows::Odd,
                    ..GATE_AND_UP
                },
            ),
        ],
        output: stacked(
            "mlp.experts.{}.down_proj",
            Role::Down,
            Stack {
                weight: "mlp.experts.down_proj",
                bias: "mlp.experts.down_proj_bias",
                rows: StackRows::All,
                ..GATE_AND_UP
            },
        ),
        bias: Bias::Always,
        shared: None,
        beside_mlp: false,
    }),
    window: WindowRule::AllButEvery("sliding_window_pattern"),
    aliases: &[
        ("num_experts", "num_local_experts"),
        ("moe_intermediate_size", "intermediate_size"),
    ],
    synonyms: &[("hidden_act", "silu", "swigluoai")],
    defaults: &[
        ("hidden_act", "\"swigluoai\""),
        ("num_experts", "128"),
        ("num_experts_per_tok", "4"),
        ("num_key_value_heads", "8"),
        ("head_dim", "64"),
        ("attention_bias", "true"),
        ("sliding_window", "128"),
        ("sliding_window_pattern", "2"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", "150000.0"),
        (
            "rope_parameters",
            "{\"rope_type\": \"yarn\", \"factor\": 32.0, \"truncate\": false, \"original_max_position_embeddings\": 4096}",
        ),
        ("max_position_embeddings", "131072"),
    ],
    requires: &[("is_causal", &["true"])],
    ..LLAMA
};
