//! Which row is meant by a `config.json`, and what is said where there is none.

use serde_json::Value;

use super::{ARCHITECTURES, Architecture, COMPOSITES, Composite, Text};
use crate::model::Error;

/// What a `config.json` describes.
#[derive(Debug)]
pub(in crate::model) struct Found {
    pub arch: &'static Architecture,
    /// What the language model is a part of.
    pub composite: Option<&'static Composite>,
    /// The language model's configuration, and the key of it in the file; empty for the file itself.
    pub config: Value,
    pub path: &'static str,
}

/// The row for this `config.json`.
pub(in crate::model) fn find(json: &Value) -> Result<Found, Error> {
    let named = json.get("model_type").and_then(Value::as_str);
    let composite = COMPOSITES.iter().find(|row| Some(row.model_type) == named);
    let Some(composite) = composite else {
        let config = json.clone();
        return Ok(Found {
            arch: find_row(json)?,
            composite,
            config,
            path: "",
        });
    };
    check_class(json, composite.model_type, composite.architecture)?;
    let mut config = composite.text_config(json);
    let arch = match composite.text {
        Text::Of(arch) => arch,
        Text::Named(arch) => {
            let object = config.as_object_mut();
            if let Some(object) = object {
                // Which class the language model came from is of no matter.
                object.remove("architectures");
                let name = || Value::from(arch.model_type);
                object.entry("model_type").or_insert_with(name);
            }
            find_row(&config)?
        }
    };
    Ok(Found {
        arch,
        composite: Some(composite),
        config,
        path: json.get("text_config").map_or("", |_| "text_config"),
    })
}

/// The row for the `config.json` of a language model.
fn find_row(json: &Value) -> Result<&'static Architecture, Error> {
    let model_type = json
        .get("model_type")
        .and_then(Value::as_str)
        .ok_or(Error::Missing { key: "model_type" })?;
    let is_meant = |arch: &&&Architecture| {
        let meant = arch.when.iter().all(|&(key, value)| {
            let found = json.get(key).map(Value::to_string);
            found.as_deref() == Some(value)
        });
        arch.model_type == model_type && meant
    };
    let Some(arch) = ARCHITECTURES.iter().find(is_meant) else {
        return Err(unknown(model_type));
    };
    check_class(json, arch.model_type, arch.architecture)?;
    Ok(arch)
}

/// Refuses other classes than `expected`, such as a classifier's.
fn check_class(
    json: &Value,
    model_type: &'static str,
    expected: &'static str,
) -> Result<(), Error> {
    let Some(names) = json.get("architectures").filter(|names| !names.is_null()) else {
        return Ok(());
    };
    let mut listed = names.as_array().into_iter().flatten();
    if listed.any(|name| name == expected) {
        return Ok(());
    }
    Err(Error::UnknownArchitecture {
        model_type,
        found: names.to_string(),
        expected,
    })
}

/// All model types that there are rows for, sorted.
pub fn model_types() -> Vec<&'static str> {
    let rows = ARCHITECTURES.iter().map(|arch| arch.model_type);
    let mut names: Vec<&str> = rows
        .chain(COMPOSITES.iter().map(|row| row.model_type))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn unknown(model_type: &str) -> Error {
    const NEAREST: usize = 3;
    let mut names = model_types();
    let supported = names.join(", ");
    names.sort_by_key(|name| edit_distance(name, model_type));
    names.truncate(NEAREST);
    Error::UnknownModelType {
        found: model_type.to_owned(),
        nearest: names.join(", "),
        supported,
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
    fn unknown_families_and_heads_name_what_is_supported() {
        let message = |json| find(&json).unwrap_err().to_string();
        let found = message(json!({"model_type": "qwen4"}));
        let expected = "model_type \"qwen4\" is not supported; the nearest are qwen2, qwen3, ";
        assert!(found.starts_with(expected), "{found}");
        assert!(found.contains("Adding a model family"), "{found}");
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
