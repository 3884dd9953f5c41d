//! DeepSeek V3 and R1: multi-head latent attention, and experts in groups beside a shared one.

use super::experts::{deepseek_router, llama_experts, shared_experts};
use super::llama::LLAMA;
use super::{
    Architecture, Attention, AttentionScale, Bias, Experts, Latent, NormSite, Pairs, Role, Rotary,
    SparseLayers, Split, linear, llama_attention, llama_mlp,
};

pub const DEEPSEEK_V3: Architecture = Architecture {
    model_type: "deepseek_v3",
    architecture: "DeepseekV3ForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::QueryLatent, "self_attn.q_a_layernorm"),
        (NormSite::KeyValueLatent, "self_attn.kv_a_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
    ],
    attention: Attention {
        inputs: &[],
        latent: Some(Latent {
            query: linear("self_attn.q_proj", &[Role::Q]),
            query_down: linear("self_attn.q_a_proj", &[Role::QueryLatent]),
            query_up: linear("self_attn.q_b_proj", &[Role::Q]),
            key_value_down: linear(
                "self_attn.kv_a_proj_with_mqa",
                &[Role::KeyValueLatent, Role::TurningKey],
            ),
            key_value_up: super::LinearSpec {
                name: "self_attn.kv_b_proj",
                parts: &[Role::K, Role::V],
                split: Split::Heads,
            },
        }),
        scale: AttentionScale::StretchedHeadDim,
        ..llama_attention(Bias::If("attention_bias"), Bias::If("attention_bias"))
    },
    mlp: llama_mlp(Bias::Never),
    experts: Some(Experts {
        layers: SparseLayers::From("first_k_dense_replace"),
        shared: Some(shared_experts("n_shared_experts")),
        ..llama_experts(deepseek_router())
    }),
    rotary: Rotary {
        pairs: Pairs::NeighboursUnless("rope_interleave"),
        ..LLAMA.rotary
    },
    aliases: &[("num_experts", "n_routed_experts")],
    defaults: &[
        ("num_experts", "256"),
        ("num_experts_per_tok", "8"),
        ("moe_intermediate_size", "2048"),
        ("n_shared_experts", "1"),
        ("first_k_dense_replace", "3"),
        ("n_group", "8"),
        ("topk_group", "4"),
        ("norm_topk_prob", "true"),
        ("routed_scaling_factor", "2.5"),
        ("num_key_value_heads", "128"),
        ("q_lora_rank", "1536"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "128"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "128"),
        ("max_position_embeddings", "4096"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("moe_layer_freq", &["1"]),
        ("scoring_func", &["\"sigmoid\""]),
    ],
    ..LLAMA
};
