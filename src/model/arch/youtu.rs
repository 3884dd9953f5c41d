//! Youtu-LLM: DeepSeek V3's attention, dense.

use super::Architecture;
use super::deepseek_v3::DEEPSEEK_V3;
use super::llama::LLAMA;

pub const YOUTU: Architecture = Architecture {
    model_type: "youtu",
    architecture: "YoutuForCausalLM",
    experts: None,
    defaults: &[
        ("num_key_value_heads", "16"),
        ("q_lora_rank", "1536"),
        ("kv_lora_rank", "512"),
        ("qk_nope_head_dim", "128"),
        ("qk_rope_head_dim", "64"),
        ("v_head_dim", "128"),
        ("max_position_embeddings", "131072"),
        ("tie_word_embeddings", "true"),
    ],
    requires: LLAMA.requires,
    ..DEEPSEEK_V3
};
