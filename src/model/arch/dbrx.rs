//! DBRX: Q, K and V in one tensor, clipped; all experts of a layer one after the other in another.

use super::experts::{softmax_router, stacked};
use super::llama::LLAMA;
use super::{
    Architecture, Attention, Bias, Experts, NormKind, NormSite, Role, SparseLayers, Stack,
    StackRows, linear, llama_attention,
};

const GATE: Stack = Stack {
    weight: "ffn.experts.mlp.w1",
    bias: "",
    transposed: false,
    flat: true,
    rows: StackRows::All,
};

pub const DBRX: Architecture = Architecture {
    model_type: "dbrx",
    architecture: "DbrxForCausalLM",
    embedding: "transformer.wte.weight",
    layers: "transformer.blocks",
    final_norm: "transformer.norm_f",
    norms: &[
        (NormSite::Attention, "norm_attn_norm.norm_1"),
        (NormSite::Mlp, "norm_attn_norm.norm_2"),
    ],
    norm: NormKind::LayerWeight,
    norm_eps: "layer_norm_eps",
    attention: Attention {
        inputs: &[linear(
            "norm_attn_norm.attn.Wqkv",
            &[Role::Q, Role::K, Role::V],
        )],
        output: linear("norm_attn_norm.attn.out_proj", &[Role::O]),
        clip: Some("clip_qkv"),
        ..llama_attention(Bias::Never, Bias::Never)
    },
    experts: Some(Experts {
        layers: SparseLayers::All,
        router: softmax_router("ffn.router.layer", Bias::Always),
        inputs: &[
            stacked("ffn.experts.{}.w1", Role::Gate, GATE),
            stacked(
                "ffn.experts.{}.v1",
                Role::Up,
                Stack {
                    weight: "ffn.experts.mlp.v1",
                    ..GATE
                },
            ),
        ],
        output: stacked(
            "ffn.experts.{}.w2",
            Role::Down,
            Stack {
                weight: "ffn.experts.mlp.w2",
                transposed: true,
                ..GATE
            },
        ),
        bias: Bias::Never,
        shared: None,
        beside_mlp: false,
    }),
    aliases: &[
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
        ("max_position_embeddings", "max_seq_len"),
        ("num_key_value_heads", "attn_config.kv_n_heads"),
        ("clip_qkv", "attn_config.clip_qkv"),
        ("rope_theta", "attn_config.rope_theta"),
        ("hidden_act", "ffn_config.ffn_act_fn.name"),
        ("moe_intermediate_size", "ffn_config.ffn_hidden_size"),
        ("intermediate_size", "ffn_config.ffn_hidden_size"),
        ("num_experts", "ffn_config.moe_num_experts"),
        ("num_experts_per_tok", "ffn_config.moe_top_k"),
        ("normalize", "ffn_config.moe_normalize_expert_weights"),
    ],
    defaults: &[("layer_norm_eps", "1e-5"), ("num_key_value_heads", "1")],
    requires: &[("normalize", &["1.0"])],
    ..LLAMA
};
