//! Ministral 3: Mistral whose queries are multiplied by what grows with their position.

use super::mistral::MISTRAL;
use super::{Architecture, Attention, Bias, Temperature, llama_attention};

pub const MINISTRAL3: Architecture = Architecture {
    model_type: "ministral3",
    architecture: "Ministral3ForCausalLM",
    attention: Attention {
        temperature: Temperature::Stretched,
        ..llama_attention(Bias::Never, Bias::Never)
    },
    defaults: &[
        ("num_key_value_heads", "8"),
        ("head_dim", "128"),
        ("rms_norm_eps", "1e-5"),
        ("max_position_embeddings", "262144"),
        (
            "rope_parameters",
            r#"{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}"#,
        ),
    ],
    ..MISTRAL
};
