//! Gemma 4 (text): Gemma 3 whose layers without a window have wider heads, few of whose dimensions turn; values are
//! normalized, and may be the keys; last layers may borrow keys and values, layers may take inputs of the tokens themselves,
//! and experts may run beside the MLP.

use super::experts::{softmax_router, stacked};
use super::gemma3_text::GEMMA3_TEXT;
use super::{
    Architecture, Attention, AttentionScale, Bias, Borrowing, Experts, FullLayers, LayerInput,
    NormKind, NormSite, Role, Router, SparseLayers, Stack, StackRows, WindowRule, llama_attention,
};

const GATE: Stack = Stack {
    weight: "experts.gate_up_proj",
    bias: "",
    transposed: false,
    flat: false,
    rows: StackRows::FirstHalf,
};
const UP: Stack = Stack {
    rows: StackRows::SecondHalf,
    ..GATE
};
const DOWN: Stack = Stack {
    weight: "experts.down_proj",
    rows: StackRows::All,
    ..GATE
};

pub const GEMMA4_TEXT: Architecture = Architecture {
    model_type: "gemma4_text",
    architecture: "Gemma4ForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::Query, "self_attn.q_norm"),
        (NormSite::Key, "self_attn.k_norm"),
        (NormSite::AfterAttention, "post_attention_layernorm"),
        (NormSite::Mlp, "pre_feedforward_layernorm"),
        (NormSite::BesideExperts, "post_feedforward_layernorm_1"),
        (NormSite::Router, "router.scale"),
        (NormSite::Experts, "pre_feedforward_layernorm_2"),
        (NormSite::OfExperts, "post_feedforward_layernorm_2"),
        (NormSite::AfterMlp, "post_feedforward_layernorm"),
        (NormSite::AfterLayerInput, "post_per_layer_input_norm"),
    ],
    norm: NormKind::RmsLast,
    attention: Attention {
        scale: AttentionScale::One,
        value_norm: true,
        full_layers: Some(FullLayers {
            head_dim: "global_head_dim",
            values_are_keys: "attention_k_eq_v",
            kv_heads: "num_global_key_value_heads",
        }),
        borrowing: Some(Borrowing {
            layers: "num_kv_shared_layers",
            double_mlp: "use_double_wide_mlp",
        }),
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    experts: Some(Experts {
        layers: SparseLayers::AllIf("enable_moe_block"),
        router: Router {
            expert_scale: Some("router.per_expert_scale"),
            ..softmax_router("router.proj", Bias::Always)
        },
        inputs: &[
            stacked("experts.{}.gate_proj", Role::Gate, GATE),
            stacked("experts.{}.up_proj", Role::Up, UP),
        ],
        output: stacked("experts.{}.down_proj", Role::Down, DOWN),
        bias: Bias::Never,
        shared: None,
        beside_mlp: true,
    }),
    layer_input: Some(LayerInput {
        embedding: "model.embed_tokens_per_layer.weight",
        model_projection: "model.per_layer_model_projection",
        norm: "model.per_layer_projection_norm",
        gate: "per_layer_input_gate",
        projection: "per_layer_projection",
    }),
    layer_scale: Some("layer_scalar"),
    window: WindowRule::AllButEveryAndLast("sliding_window_pattern"),
    aliases: &[
        ("hidden_act", "hidden_activation"),
        ("num_experts_per_tok", "top_k_experts"),
    ],
    defaults: &[
        ("num_key_value_heads", "4"),
        ("head_dim", "256"),
        ("global_head_dim", "512"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        (
            "rope_parameters",
            r#"{"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}"#,
        ),
        ("sliding_window", "512"),
        ("sliding_window_pattern", "6"),
        ("hidden_size_per_layer_input", "256"),
        ("vocab_size_per_layer_input", "262144"),
        ("max_position_embeddings", "131072"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        // Of an image's tokens; text is causal.
        ("use_bidirectional_attention", &["\"vision\""]),
        ("attn_logit_softcapping", &["null"]),
    ],
    ..GEMMA3_TEXT
};
