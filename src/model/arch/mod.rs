//! What differs between model families, as data: names, stages, norms, biases and windows.
//!
//! Adding a family is one file with one row and one entry in [`ARCHITECTURES`]. A family that computes something new
//! adds an enum value that any row can use; nothing asks for a family by name.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use super::Error;

/// What a linear's output, or a block of it, is to the mixing step that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// The norms of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NormSite {
    /// Of the residual stream, before attention.
    Attention,
    /// Of the residual stream, before the MLP.
    Mlp,
    /// Of each head's query, before the rotary embedding.
    Query,
    /// Of each head's key, before the rotary embedding.
    Key,
}

/// A linear as it is stored, which is how it is quantized and written: what runtimes have as one module stays one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearSpec {
    /// Inside the layer, without `.weight`.
    pub name: &'static str,
    /// What its rows compute: blocks, one after the other.
    pub parts: &'static [Role],
}

/// The attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// They compute Q, K and V.
    pub inputs: &'static [LinearSpec],
    pub bias: Bias,
    pub output: LinearSpec,
    pub output_bias: Bias,
}

/// The MLP of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    /// They compute the gate and what it is multiplied with.
    pub inputs: &'static [LinearSpec],
    pub output: LinearSpec,
    pub bias: Bias,
}

/// How a norm uses its weight `w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w`
    Rms,
    /// `x / rms(x) * (1 + w)`
    RmsOffset,
}

impl NormKind {
    /// What the norm adds to its stored weight.
    pub fn offset(self) -> f32 {
        match self {
            Self::Rms => 0.0,
            Self::RmsOffset => 1.0,
        }
    }
}

/// Whether a linear has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    Never,
    Always,
    /// If `attention_bias` is true.
    AttentionBias,
    /// If `mlp_bias` is true.
    MlpBias,
}

/// Which layers attend only to the last `sliding_window` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// None; the key is ignored.
    Never,
    /// All, unless `sliding_window` is null.
    EveryLayer,
    /// If `use_sliding_window`: those that `layer_types` calls `sliding_attention`, or else those from
    /// `max_window_layers` on.
    ByLayerType,
}

/// One model family.
#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class that loaders look up: `architectures` in `config.json`.
    pub architecture: &'static str,
    /// Tensor name of the embedding.
    pub embedding: &'static str,
    /// Prefix of the layers, before `.0`.
    pub layers: &'static str,
    /// Tensor name of the norm after the last layer.
    pub final_norm: &'static str,
    /// Tensor name of the output projection, where it is not tied to the embedding.
    pub head: &'static str,
    /// Names inside the layer, without `.weight`.
    pub norms: &'static [(NormSite, &'static str)],
    pub norm: NormKind,
    pub attention: Attention,
    pub mlp: Mlp,
    pub window: WindowRule,
    /// What transformers takes for a key that is absent (not null).
    pub defaults: &'static [(&'static str, usize)],
    /// Keys that must be absent or hold one of these JSON values, because the forward pass computes nothing else.
    pub requires: &'static [(&'static str, &'static [&'static str])],
}

/// Every family that can be quantized.
pub const ARCHITECTURES: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
];

/// Q, K, V and O under the names that Llama gave them.
const fn llama_attention(bias: Bias, output_bias: Bias) -> Attention {
    const INPUTS: &[LinearSpec] = &[
        linear("self_attn.q_proj", &[Role::Q]),
        linear("self_attn.k_proj", &[Role::K]),
        linear("self_attn.v_proj", &[Role::V]),
    ];
    Attention {
        inputs: INPUTS,
        bias,
        output: linear("self_attn.o_proj", &[Role::O]),
        output_bias,
    }
}

/// The gated MLP under the names that Llama gave it.
const fn llama_mlp(bias: Bias) -> Mlp {
    const INPUTS: &[LinearSpec] = &[
        linear("mlp.gate_proj", &[Role::Gate]),
        linear("mlp.up_proj", &[Role::Up]),
    ];
    Mlp {
        inputs: INPUTS,
        output: linear("mlp.down_proj", &[Role::Down]),
        bias,
    }
}

const fn linear(name: &'static str, parts: &'static [Role]) -> LinearSpec {
    LinearSpec { name, parts }
}

/// The row for this `config.json`.
pub(super) fn find(json: &serde_json::Value) -> Result<&'static Architecture, Error> {
    let model_type = json
        .get("model_type")
        .and_then(serde_json::Value::as_str)
        .ok_or(Error::Missing { key: "model_type" })?;
    let Some(arch) = ARCHITECTURES
        .iter()
        .find(|arch| arch.model_type == model_type)
    else {
        return Err(unknown(model_type));
    };
    match json.get("architectures") {
        None | Some(serde_json::Value::Null) => Ok(arch),
        Some(names)
            if names
                .as_array()
                .is_some_and(|names| names.iter().any(|name| name == arch.architecture)) =>
        {
            Ok(arch)
        }
        Some(names) => Err(Error::UnknownArchitecture {
            model_type: arch.model_type,
            found: names.to_string(),
            expected: arch.architecture,
        }),
    }
}

fn unknown(model_type: &str) -> Error {
    let names = || ARCHITECTURES.iter().map(|arch| arch.model_type);
    Error::UnknownModelType {
        found: model_type.to_owned(),
        nearest: names()
            .min_by_key(|name| edit_distance(name, model_type))
            .expect("there are architectures"),
        supported: names().collect::<Vec<_>>().join(", "),
    }
}

/// Levenshtein's distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_consistent() {
        for (i, arch) in ARCHITECTURES.iter().enumerate() {
            for other in &ARCHITECTURES[..i] {
                assert_ne!(arch.model_type, other.model_type);
                assert_ne!(arch.architecture, other.architecture);
            }
            let parts = |linears: &[LinearSpec]| -> Vec<Role> {
                linears
                    .iter()
                    .flat_map(|linear| linear.parts)
                    .copied()
                    .collect()
            };
            let model_type = arch.model_type;
            assert_eq!(
                parts(arch.attention.inputs),
                [Role::Q, Role::K, Role::V],
                "{model_type}"
            );
            assert_eq!(arch.attention.output.parts, [Role::O], "{model_type}");
            assert_eq!(
                parts(arch.mlp.inputs),
                [Role::Gate, Role::Up],
                "{model_type}"
            );
            assert_eq!(arch.mlp.output.parts, [Role::Down], "{model_type}");
            for site in [NormSite::Attention, NormSite::Mlp] {
                assert!(arch.norms.iter().any(|norm| norm.0 == site), "{model_type}");
            }
        }
    }

    #[test]
    fn unknown_families_and_heads_name_what_is_supported() {
        let message = |json| find(&json).unwrap_err().to_string();
        assert_eq!(
            message(json!({"model_type": "qwen3_moe"})),
            "model_type \"qwen3_moe\" is not supported; the nearest is \"qwen3\", supported are llama, mistral, qwen2, qwen3"
        );
        assert_eq!(
            message(
                json!({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]})
            ),
            "config.json: architectures is [\"LlamaForSequenceClassification\"], but for model_type \"llama\" \
             only LlamaForCausalLM is supported"
        );
        assert_eq!(message(json!({})), "config.json: model_type is missing");
    }
}
