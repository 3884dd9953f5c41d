//! DeepSeek V2 and V2-Lite: V3's attention.

use super::deepseek_v3::DEEPSEEK_V3;
use super::llama::LLAMA;
use super::{Architecture, Bias, Pairs, Rotary, llama_mlp};

pub const DEEPSEEK_V2: Architecture = Architecture {
    model_type: "deepseek_v2",
    architecture: "DeepseekV2ForCausalLM",
    mlp: llama_mlp(Bias::If("mlp_bias")),
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        ..LLAMA.rotary
    },
    defaults: &[
        ("q_lora_rank", "1536"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "128"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "128"),
        ("max_position_embeddings", "2048"),
    ],
    ..DEEPSEEK_V3
};
