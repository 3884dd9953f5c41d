//! The towers.

mod clip;
mod gemma4;
mod glm4v;
mod internvl;
mod mllama;
mod pixtral;
mod qwen;

use super::rows::Tower;

pub const TOWERS: &[&Tower] = &[
    &clip::CLIP,
    &clip::SIGLIP,
    &clip::IDEFICS3,
    &clip::PHI4,
    &gemma4::GEMMA4,
    &glm4v::GLM4V,
    &internvl::INTERNVL,
    &mllama::MLLAMA,
    &pixtral::PIXTRAL,
    &qwen::QWEN2_VL,
    &qwen::QWEN2_5_VL,
    &qwen::QWEN3_VL,
];
