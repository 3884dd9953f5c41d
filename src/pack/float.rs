//! What stays in float, in the words of each reader.
//!
//! vLLM 0.32 looks for parts of the names that its own model has, transformers 5.23 for beginnings and ends of those in its
//! memory, GPTQModel 7.7 and vLLM for regular expressions on theirs. These names differ from the stored ones in their first
//! parts, and inside what sees in more: vLLM fuses there too, and transformers drops and adds levels.

use std::collections::HashSet;

use serde_json::{Value, json};

/// What of a checkpoint stays in float, beside the output head.
#[derive(Debug, Clone, Copy, Default)]
pub struct Float<'a> {
    /// Full names of linears of the decoder, such as routers.
    pub linears: &'a [String],
    /// Those of them that readers expect to be quantized.
    pub projections: &'a [String],
    /// Parts of the model that hold nothing of the decoder, as [`Outside`] finds them.
    pub parts: &'a [String],
    /// What the decoder's names begin with where it is a part of another model (`model.language_model.`).
    pub inside: Option<&'a str>,
}

impl Float<'_> {
    pub fn is_empty(&self) -> bool {
        self.linears.is_empty() && self.parts.is_empty()
    }

    /// The list of AWQ's readers. A part of a name is enough for vLLM; transformers wants a whole beginning or the end.
    pub fn names(&self) -> Vec<String> {
        let linears = self.linears.iter();
        let linears = linears.map(|name| self.inner(name).unwrap_or(name).to_owned());
        let parts = self.parts.iter();
        let parts = parts.flat_map(|part| [part.clone(), format!("model.{part}")]);
        linears.chain(parts).collect()
    }

    /// One rule for each linear and each part: a regular expression on the beginning of a full name.
    pub fn rules(&self) -> Value {
        let linears = self.linears.iter().map(|name| self.rule(name));
        let parts = self.parts.iter();
        let parts = parts.map(|part| format!(r"-:^(model\.)?{}(\.|$)", literal(part)));
        linears.chain(parts).map(|rule| (rule, json!({}))).collect()
    }

    /// The rules for those that readers expect to be quantized.
    pub fn projection_rules(&self) -> Value {
        let rules = self.projections.iter().map(|name| self.rule(name));
        rules.map(|rule| (rule, json!({}))).collect()
    }

    /// A linear of the decoder: what its name begins with differs between readers.
    fn rule(&self, name: &str) -> String {
        let (first, rest) = match (self.inner(name), name.strip_prefix("model.")) {
            (Some(rest), _) => (r"(model\.|language_model\.|text_model\.)*", rest),
            (None, Some(rest)) => (r"(model\.)?", rest),
            (None, None) => ("", name),
        };
        format!("-:^{first}{}$", literal(rest))
    }

    /// The name inside the decoder, where that is a part of another model.
    fn inner<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_prefix(self.inside?)
    }
}

/// A name as a regular expression.
fn literal(name: &str) -> String {
    name.replace('.', r"\.")
}

/// Linears of a checkpoint that the decoder does not have.
#[derive(Debug, PartialEq, Eq)]
pub struct Outside {
    /// What holds nothing but such linears, by its name without a first `model.`.
    pub parts: Vec<String>,
    /// The rest, by their full names.
    pub linears: Vec<String>,
}

impl Outside {
    /// Sorts `linears`, full names, into the largest parts that hold none of the tensors `used`. A part whose name stands
    /// somewhere in the name of one of `quantized` could be taken for a part of that: its linears are named one by one.
    pub fn new<'a>(
        linears: impl Iterator<Item = &'a str>,
        used: &HashSet<String>,
        quantized: &[&str],
    ) -> Self {
        let beginnings: HashSet<&str> = used.iter().flat_map(|name| beginnings(name)).collect();
        let mut outside = Self {
            parts: Vec::new(),
            linears: Vec::new(),
        };
        for linear in linears {
            let mut parts = beginnings_with_all(linear);
            let part = parts
                .find(|part| !beginnings.contains(part))
                .map(|part| part.strip_prefix("model.").unwrap_or(part))
                .filter(|part| !quantized.iter().any(|name| name.contains(part)));
            match part {
                None => outside.linears.push(linear.to_owned()),
                Some(part) if outside.parts.iter().any(|known| known == part) => {}
                Some(part) => outside.parts.push(part.to_owned()),
            }
        }
        outside
    }
}

/// What the name is in: `a`, `a.b` of `a.b.c`.
fn beginnings(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[..dot])
}

fn beginnings_with_all(name: &str) -> impl Iterator<Item = &str> {
    beginnings(name).chain([name])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn what_sees_is_named_as_a_whole() {
        for (decoder, others, expected) in [
            (
                "model.language_model.",
                &[
                    "model.visual.blocks.0.attn.qkv",
                    "model.visual.merger.mlp.0",
                    "mtp.fc",
                ][..],
                &["visual", "mtp"][..],
            ),
            (
                "language_model.model.",
                &[
                    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
                    "multi_modal_projector.linear_1",
                ],
                &["vision_tower", "multi_modal_projector"],
            ),
            ("model.", &["visual.blocks.0.attn.qkv"], &["visual"]),
            (
                "model.text_model.",
                &[
                    "model.vision_model.encoder.layers.0.mlp.fc1",
                    "model.connector.modality_projection.proj",
                ],
                &["vision_model", "connector"],
            ),
            // A layer that predicts one more token, and a linear between used ones.
            (
                "model.",
                &[
                    "model.layers.2.self_attn.q_proj",
                    "model.layers.0.self_attn.indexer",
                ],
                &["layers.2", "layers.0.self_attn.indexer"],
            ),
        ] {
            let used = ["embed_tokens.weight", "layers.0.self_attn.q_proj.weight"];
            let used = used.map(|name| format!("{decoder}{name}"));
            let quantized = format!("{decoder}layers.0.self_attn.q_proj");
            let outside = Outside::new(
                others.iter().copied(),
                &HashSet::from(used),
                &[&quantized[..]],
            );
            assert_eq!(outside.parts, expected);
            assert!(outside.linears.is_empty());
        }
    }

    #[test]
    fn a_part_whose_name_is_in_a_quantized_one_is_named_linear_by_linear() {
        let used = HashSet::from(["model.layers.0.self_attn.o_proj.weight".to_owned()]);
        let others = ["attn.a", "attn.b"];
        let quantized = ["model.layers.0.self_attn.o_proj"];
        let outside = Outside::new(others.into_iter(), &used, &quantized);
        assert_eq!(outside.linears, others);
        assert!(outside.parts.is_empty());
    }

    #[test]
    fn each_reader_gets_its_own_names() {
        let linears = owned(&["model.language_model.layers.0.mlp.gate"]);
        let parts = owned(&["visual"]);
        let float = Float {
            linears: &linears,
            projections: &linears,
            parts: &parts,
            inside: Some("model.language_model."),
        };
        assert_eq!(
            float.names(),
            ["layers.0.mlp.gate", "visual", "model.visual"]
        );
        let linear = r"-:^(model\.|language_model\.|text_model\.)*layers\.0\.mlp\.gate$";
        assert_eq!(
            float.rules(),
            json!({ linear: {}, r"-:^(model\.)?visual(\.|$)": {} })
        );
        assert_eq!(float.projection_rules(), json!({ linear: {} }));
        // Text models are called by their stored names.
        let linears = owned(&["model.layers.0.mlp.gate", "backbone.layers.0.gate"]);
        let float = Float {
            linears: &linears,
            ..Float::default()
        };
        assert_eq!(float.names(), linears);
        let rules = [
            r"-:^(model\.)?layers\.0\.mlp\.gate$",
            r"-:^backbone\.layers\.0\.gate$",
        ];
        assert_eq!(float.rules(), json!({ rules[0]: {}, rules[1]: {} }));
    }
}
