//! GLM 4-0414: `glm` with norms after attention and MLP as well.

use super::glm::GLM;
use super::{Architecture, NormSite};

pub const GLM4: Architecture = Architecture {
    model_type: "glm4",
    architecture: "Glm4ForCausalLM",
    norms: &[
        (NormSite::Attention, "input_layernorm"),
        (NormSite::AfterAttention, "post_self_attn_layernorm"),
        (NormSite::Mlp, "post_attention_layernorm"),
        (NormSite::AfterMlp, "post_mlp_layernorm"),
    ],
    ..GLM
};
