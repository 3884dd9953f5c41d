//! Llama 4 (text models): chunks of attention in the layers with positions, temperatures in the others.

use super::experts::{softmax_router, stacked};
use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Experts, Mlp, Pairs, QkNorm, Role, RopeLayers, Rotary, Router,
    Scoring, Shared, SharedWidth, SparseLayers, Stack, StackRows, Temperature, WindowRule, linear,
    llama_attention,
};

const GATE_AND_UP: Stack = Stack {
    weight: "feed_forward.experts.gate_up_proj",
    bias: "",
    transposed: true,
    flat: false,
    rows: StackRows::FirstHalf,
};

pub const LLAMA4_TEXT: Architecture = Architecture {
    model_type: "llama4_text",
    architecture: "Llama4ForCausalLM",
    attention: Attention {
        // vLLM turns halves of heads where neighbours turn here, and sorts rows for that only in what is called `weight`.
        float_inputs: true,
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
    experts: Some(Experts {
        layers: SparseLayers::Listed {
            list: "moe_layers",
            interval: "interleave_moe_layer_step",
        },
        router: Router {
            scoring: Scoring::SigmoidOfInput,
            ..softmax_router("feed_forward.router", Bias::Never)
        },
        inputs: &[
            stacked("feed_forward.experts.{}.gate_proj", Role::Gate, GATE_AND_UP),
            stacked(
                "feed_forward.experts.{}.up_proj",
                Role::Up,
                Stack {
                    rows: StackRows::SecondHalf,
                    ..GATE_AND_UP
                },
            ),
        ],
        output: stacked(
            "feed_forward.experts.{}.down_proj",
            Role::Down,
            Stack {
                weight: "feed_forward.experts.down_proj",
                rows: StackRows::All,
                ..GATE_AND_UP
            },
        ),
        bias: Bias::Never,
        shared: Some(Shared {
            inputs: &[
                linear("feed_forward.shared_expert.gate_proj", &[Role::Gate]),
                linear("feed_forward.shared_expert.up_proj", &[Role::Up]),
            ],
            output: linear("feed_forward.shared_expert.down_proj", &[Role::Down]),
            width: SharedWidth::Experts("n_shared_experts"),
            gate: None,
        }),
        beside_mlp: false,
    }),
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        layers: RopeLayers::NoRopeLayers,
        ..LLAMA.rotary
    },
    window: WindowRule::Chunks,
    aliases: &[
        ("num_experts", "num_local_experts"),
        ("moe_intermediate_size", "intermediate_size"),
        ("intermediate_size", "intermediate_size_mlp"),
    ],
    defaults: &[
        ("num_experts", "16"),
        ("num_experts_per_tok", "1"),
        ("n_shared_experts", "1"),
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
    ],
    ..LLAMA
};
