//! GPT-BigCode (StarCoder, SantaCoder): GPT-2 with one head of keys and values, its linears stored as others' are.

use super::gpt2::GPT2;
use super::{Architecture, Attention, KvHeads, LinearSpec, Role, Split};

pub const GPT_BIGCODE: Architecture = Architecture {
    model_type: "gpt_bigcode",
    architecture: "GPTBigCodeForCausalLM",
    transposed: false,
    attention: Attention {
        inputs: &[LinearSpec {
            name: "attn.c_attn",
            parts: &[Role::Q, Role::K, Role::V],
            split: Split::Heads,
        }],
        ..GPT2.attention
    },
    kv_heads: KvHeads::OneIf("multi_query"),
    defaults: &[
        ("multi_query", "true"),
        ("hidden_act", "\"gelu_pytorch_tanh\""),
        ("layer_norm_epsilon", "1e-5"),
        ("max_position_embeddings", "1024"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[
        ("scale_attn_weights", &["true"]),
        ("add_cross_attention", &["false"]),
    ],
    ..GPT2
};
