//! MiniCPM 3: multi-head latent attention, dense, with scales that follow from width and depth.

use super::deepseek_v3::DEEPSEEK_V3;
use super::llama::LLAMA;
use super::{Architecture, Bias, Scale, Scales, llama_mlp};

pub const MINICPM3: Architecture = Architecture {
    model_type: "minicpm3",
    architecture: "MiniCPM3ForCausalLM",
    mlp: llama_mlp(Bias::If("mlp_bias")),
    rotary: LLAMA.rotary,
    scales: Scales {
        embedding: Scale::By("scale_emb"),
        residual: Scale::OverRootOfLayers("scale_depth"),
        logits: Scale::OverHidden("dim_model_base"),
    },
    experts: None,
    defaults: &[
        ("num_key_value_heads", "40"),
        ("q_lora_rank", "768"),
        ("kv_lora_rank", "256"),
        ("qk_nope_head_dim", "64"),
        ("qk_rope_head_dim", "32"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "32768"),
        ("tie_word_embeddings", "true"),
        ("scale_emb", "12"),
        ("scale_depth", "1.4"),
        ("dim_model_base", "256"),
    ],
    requires: LLAMA.requires,
    ..DEEPSEEK_V3
};
