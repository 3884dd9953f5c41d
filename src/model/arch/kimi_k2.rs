//! Kimi K2: DeepSeek V3 under a name of its own.

use super::Architecture;
use super::deepseek_v3::DEEPSEEK_V3;

pub const KIMI_K2: Architecture = Architecture {
    model_type: "kimi_k2",
    ..DEEPSEEK_V3
};
