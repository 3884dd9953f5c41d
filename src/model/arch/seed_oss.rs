//! Seed-OSS: Llama with a bias on Q, K and V, and a switch of its own for that of O.

use super::llama::LLAMA;
use super::{Architecture, Bias, llama_attention};

pub const SEED_OSS: Architecture = Architecture {
    model_type: "seed_oss",
    architecture: "SeedOssForCausalLM",
    attention: llama_attention(Bias::If("attention_bias"), Bias::If("attention_out_bias")),
    defaults: &[
        ("attention_bias", "true"),
        ("head_dim", "128"),
        ("num_key_value_heads", "8"),
        ("max_position_embeddings", "524288"),
    ],
    ..LLAMA
};
