//! What differs between model families, as data: names, stages, norms, biases and windows.
//!
//! Adding a family is one file with one row and one entry in [`ARCHITECTURES`]. A family that computes something new
//! adds an enum value that any row can use; nothing asks for a family by name.

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use super::Error;

/// The linear layers of a decoder layer.
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

/// What the linears of a stage read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageInput {
    /// A norm of the residual stream.
    Norm(NormSite),
    /// What the previous stage's mix left.
    Carried,
}

/// What turns the outputs of a stage's linears into the next stage's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Causal self-attention over the outputs of Q, K, V.
    Attention,
    /// The output is added to the residual stream.
    Residual,
    /// `act(gate) * up`.
    GatedMlp,
}

/// Where the inverse of a channel scale of a stage's input can be folded, leaving the layer's function unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// Into the norm's weight.
    Norm(NormSite),
    /// Into the rows, and the bias, of an earlier stage's linear. The input of O has one channel per query head while V
    /// has one per key-value head, so there the scale must be equal over the query heads that share a value head.
    Rows(Role),
    /// Nowhere.
    None,
}

/// Linears that read the same input, and the mixing step after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    pub name: &'static str,
    pub input: StageInput,
    pub linears: &'static [Role],
    pub mix: Mix,
    pub fold: Fold,
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

/// Name and bias of one linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearSpec {
    pub role: Role,
    /// Inside the layer, without `.weight`.
    pub name: &'static str,
    pub bias: Bias,
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
    pub linears: &'static [LinearSpec],
    /// Names inside the layer, without `.weight`.
    pub norms: &'static [(NormSite, &'static str)],
    pub stages: &'static [Stage],
    pub norm: NormKind,
    pub window: WindowRule,
    /// What transformers takes for a key that is absent (not null).
    pub defaults: &'static [(&'static str, usize)],
    /// Keys that must be absent or hold one of these JSON values, because the forward pass computes nothing else.
    pub requires: &'static [(&'static str, &'static [&'static str])],
}

impl Architecture {
    /// The linear of a role; every row has every role that its stages name.
    pub fn linear(&self, role: Role) -> &LinearSpec {
        self.linears
            .iter()
            .find(|linear| linear.role == role)
            .unwrap_or_else(|| panic!("{} has no {role:?}", self.model_type))
    }

    /// The name of a norm inside the layer.
    pub fn norm_name(&self, site: NormSite) -> &'static str {
        self.norms
            .iter()
            .find(|norm| norm.0 == site)
            .unwrap_or_else(|| panic!("{} has no norm at {site:?}", self.model_type))
            .1
    }
}

/// Every family that can be quantized.
pub const ARCHITECTURES: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
];

/// The four stages of a layer with pre-norms, grouped attention and a gated MLP.
const GATED_STAGES: &[Stage] = &[
    Stage {
        name: "attention inputs",
        input: StageInput::Norm(NormSite::Attention),
        linears: &[Role::Q, Role::K, Role::V],
        mix: Mix::Attention,
        fold: Fold::Norm(NormSite::Attention),
    },
    Stage {
        name: "attention output",
        input: StageInput::Carried,
        linears: &[Role::O],
        mix: Mix::Residual,
        fold: Fold::Rows(Role::V),
    },
    Stage {
        name: "MLP inputs",
        input: StageInput::Norm(NormSite::Mlp),
        linears: &[Role::Gate, Role::Up],
        mix: Mix::GatedMlp,
        fold: Fold::Norm(NormSite::Mlp),
    },
    Stage {
        name: "MLP output",
        input: StageInput::Carried,
        linears: &[Role::Down],
        mix: Mix::Residual,
        fold: Fold::Rows(Role::Up),
    },
];

/// The linears under the names that Llama gave them; `attention` is the bias of Q, K and V.
const fn llama_linears(attention: Bias, output: Bias, mlp: Bias) -> [LinearSpec; 7] {
    const fn spec(role: Role, name: &'static str, bias: Bias) -> LinearSpec {
        LinearSpec { role, name, bias }
    }
    [
        spec(Role::Q, "self_attn.q_proj", attention),
        spec(Role::K, "self_attn.k_proj", attention),
        spec(Role::V, "self_attn.v_proj", attention),
        spec(Role::O, "self_attn.o_proj", output),
        spec(Role::Gate, "mlp.gate_proj", mlp),
        spec(Role::Up, "mlp.up_proj", mlp),
        spec(Role::Down, "mlp.down_proj", mlp),
    ]
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
            let staged: Vec<Role> = arch
                .stages
                .iter()
                .flat_map(|stage| stage.linears)
                .copied()
                .collect();
            let named: Vec<Role> = arch.linears.iter().map(|linear| linear.role).collect();
            assert_eq!(
                staged, named,
                "{}: each linear is in one stage, in order",
                arch.model_type
            );
            for (i, stage) in arch.stages.iter().enumerate() {
                if let StageInput::Norm(site) = stage.input {
                    arch.norm_name(site);
                    assert_eq!(stage.fold, Fold::Norm(site));
                }
                if let Fold::Rows(role) = stage.fold {
                    assert!(i > 0 && arch.stages[i - 1].linears.contains(&role));
                }
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
