//! InternLM 3: Llama with other names for its biases.

use super::llama::LLAMA;
use super::{Architecture, Bias, llama_attention, llama_mlp};

pub const INTERNLM3: Architecture = Architecture {
    model_type: "internlm3",
    architecture: "InternLM3ForCausalLM",
    attention: llama_attention(Bias::If("qkv_bias"), Bias::If("bias")),
    mlp: llama_mlp(Bias::If("bias")),
    defaults: &[
        ("num_key_value_heads", "2"),
        ("max_position_embeddings", "32768"),
    ],
    ..LLAMA
};
