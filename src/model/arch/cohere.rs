//! Cohere's Command R: attention and MLP side by side behind one LayerNorm, neighbouring dimensions turned together.

use super::llama::LLAMA;
use super::{
    Architecture, Bias, Joint, NormKind, NormSite, Pairs, Rotary, Scale, Scales, llama_mlp,
};

pub const COHERE: Architecture = Architecture {
    model_type: "cohere",
    architecture: "CohereForCausalLM",
    norms: &[(NormSite::Attention, "input_layernorm")],
    norm: NormKind::LayerWeight,
    norm_eps: "layer_norm_eps",
    mlp: llama_mlp(Bias::Never),
    joint: Joint::Parallel,
    rotary: Rotary {
        pairs: Pairs::Neighbours,
        ..LLAMA.rotary
    },
    scales: Scales {
        logits: Scale::By("logit_scale"),
        ..LLAMA.scales
    },
    defaults: &[
        ("layer_norm_eps", "1e-5"),
        ("logit_scale", "0.0625"),
        ("rope_theta", "500000.0"),
        ("max_position_embeddings", "8192"),
        ("tie_word_embeddings", "true"),
    ],
    requires: &[
        ("is_causal", &["true"]),
        ("partial_rotary_factor", &["1.0"]),
        ("use_qk_norm", &["false"]),
    ],
    ..LLAMA
};
