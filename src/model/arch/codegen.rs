//! CodeGen: GPT-J with Q, V and K together, a fourth of the heads after the other.

use super::gptj::GPTJ;
use super::{Architecture, Attention, LinearSpec, Role, Split};

pub const CODEGEN: Architecture = Architecture {
    model_type: "codegen",
    architecture: "CodeGenForCausalLM",
    attention: Attention {
        inputs: &[LinearSpec {
            name: "attn.qkv_proj",
            parts: &[Role::Q, Role::V, Role::K],
            split: Split::Fourths,
        }],
        ..GPTJ.attention
    },
    ..GPTJ
};
