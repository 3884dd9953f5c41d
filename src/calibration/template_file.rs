//! Where a model directory keeps its chat template, and the special tokens that the template may name.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::Error;
use super::tokenizer::read_json;

/// A template as it was found.
pub(super) struct TemplateFile {
    pub path: PathBuf,
    pub source: String,
    /// `bos_token`, `eos_token` and all others by the names under which templates know them.
    pub special_tokens: Map<String, Json>,
}

impl TemplateFile {
    /// The first of `chat_template.jinja`, `chat_template.json` and `chat_template` of tokenizer_config.json.
    pub(super) fn find(model_dir: &Path) -> Result<Option<Self>, Error> {
        let config = read_json(&model_dir.join("tokenizer_config.json"))?;
        let Some((path, source)) = find(model_dir, &config)? else {
            return Ok(None);
        };
        let mut special_tokens = Map::new();
        let map = read_json(&model_dir.join("special_tokens_map.json"))?;
        for value in [&map, &config, &config["extra_special_tokens"]] {
            add_special_tokens(&mut special_tokens, value);
        }
        Ok(Some(Self {
            path,
            source,
            special_tokens,
        }))
    }
}

/// The template's file and source.
fn find(model_dir: &Path, config: &Json) -> Result<Option<(PathBuf, String)>, Error> {
    let path = model_dir.join("chat_template.jinja");
    if path.is_file() {
        let source = fs::read_to_string(&path);
        return match source {
            Ok(source) => Ok(Some((path, source))),
            Err(source) => Err(Error::Io { path, source }),
        };
    }
    let path = model_dir.join("chat_template.json");
    let file = read_json(&path)?;
    if let Some(template) = file.get("chat_template").and_then(Json::as_str) {
        return Ok(Some((path, template.to_owned())));
    }
    let path = model_dir.join("tokenizer_config.json");
    let template = match config.get("chat_template") {
        Some(Json::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default.map(|entry| &entry["template"])
        }
        other => other,
    };
    Ok(template
        .and_then(Json::as_str)
        .map(|template| (path, template.to_owned())))
}

/// Adds all that is called a token in `value`, as a string or as an object with `content`.
fn add_special_tokens(tokens: &mut Map<String, Json>, value: &Json) {
    for (name, token) in value.as_object().into_iter().flatten() {
        let token = token.get("content").unwrap_or(token);
        if name.ends_with("_token") && token.is_string() {
            tokens.insert(name.clone(), token.clone());
        }
    }
}
