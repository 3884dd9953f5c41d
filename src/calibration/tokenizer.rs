//! The tokenizer of a model directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Error;

/// A model's tokenizer with what its directory says about the tokens that begin and end a text.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    prefix: Vec<u32>,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `generation_config.json` and `config.json` where there are such.
    pub fn open(model_dir: &Path) -> Result<Self, Error> {
        let path = model_dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::NoTokenizer {
                directory: model_dir.to_path_buf(),
                has_sentencepiece: model_dir.join("tokenizer.model").is_file(),
            });
        }
        let mut inner = tokenizers::Tokenizer::from_file(&path).map_err(|error| {
            let reason = error.to_string();
            Error::Malformed { path, reason }
        })?;
        // Saved with some tokenizers; both would change what a long text becomes.
        inner.with_truncation(None).map_err(Error::Tokenizer)?;
        inner.with_padding(None);
        let config = read_json(&model_dir.join("tokenizer_config.json"))?;
        let prefix = prefix(&inner, &config)?;
        let mut eos = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            if eos.is_empty() {
                eos = eos_ids(&read_json(&model_dir.join(name))?);
            }
        }
        if eos.is_empty() {
            eos.extend(token_of(&inner, &config, "eos_token"));
        }
        Ok(Self { inner, prefix, eos })
    }

    /// Token ids of `text` alone: no special token is added (those written out in the text are recognised).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(Error::Tokenizer)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`Self::encode`] of several texts, on all cores.
    pub fn encode_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, Error> {
        let encodings = self
            .inner
            .encode_batch_fast(texts.to_vec(), false)
            .map_err(Error::Tokenizer)?;
        Ok(encodings.iter().map(|e| e.get_ids().to_vec()).collect())
    }

    /// Text of `ids`, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(Error::Tokenizer)
    }

    /// Id of the token that is written `token`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token that begins every text, where the tokenizer adds one.
    pub fn bos(&self) -> Option<u32> {
        self.prefix.first().copied()
    }

    /// All tokens that the tokenizer adds before a text: none, BOS, or with a few families (GLM) two.
    pub fn prefix(&self) -> &[u32] {
        &self.prefix
    }

    /// Tokens that end a generation, from the first of generation_config.json, config.json and tokenizer_config.json
    /// that names any.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }
}

/// The special tokens that encoding a text puts before it; without a post-processor that adds some,
/// `add_bos_token` of tokenizer_config.json decides.
fn prefix(inner: &tokenizers::Tokenizer, config: &Value) -> Result<Vec<u32>, Error> {
    let encoding = inner.encode("a", true).map_err(Error::Tokenizer)?;
    let added = encoding.get_special_tokens_mask();
    let n_added = added.iter().take_while(|&&special| special == 1).count();
    if n_added > 0 {
        return Ok(encoding.get_ids()[..n_added].to_vec());
    }
    if config.get("add_bos_token") == Some(&Value::Bool(true)) {
        return Ok(token_of(inner, config, "bos_token").into_iter().collect());
    }
    Ok(Vec::new())
}

/// Id of the token that `config[key]` names, as a string or as an object with `content`.
fn token_of(inner: &tokenizers::Tokenizer, config: &Value, key: &str) -> Option<u32> {
    let token = config.get(key)?;
    let token = token.get("content").unwrap_or(token).as_str()?;
    inner.token_to_id(token)
}

/// `eos_token_id` as a number or a list, at the top or in the text part of a multimodal config.
fn eos_ids(config: &Value) -> Vec<u32> {
    let text = config.get("text_config");
    let found = [Some(config), text]
        .into_iter()
        .flatten()
        .find_map(|config| config.get("eos_token_id").filter(|ids| !ids.is_null()));
    let ids = match found {
        Some(Value::Array(ids)) => ids.iter().collect(),
        Some(id) => vec![id],
        None => Vec::new(),
    };
    ids.into_iter()
        .filter_map(|id| u32::try_from(id.as_u64()?).ok())
        .collect()
}

/// The JSON in `path`, null without such a file.
pub(super) fn read_json(path: &Path) -> Result<Value, Error> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        Err(source) => {
            let path = PathBuf::from(path);
            return Err(Error::Io { path, source });
        }
    };
    serde_json::from_str(&text).map_err(|error| Error::Malformed {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(super) mod testing {
    use super::*;

    /// A directory with a tokenizer of whole words `w0` to `w999` (split at white space) and `a`, id 3 + n for `wn`.
    /// `prefix` and `suffix` are added to every text by its post-processor.
    pub fn directory(prefix: &[&str], suffix: &[&str]) -> tempfile::TempDir {
        let mut vocab = serde_json::json!({"<unk>": 0, "<bos>": 1, "<eos>": 2, "a": 1003});
        for n in 0..1000 {
            vocab[format!("w{n}")] = (n + 3).into();
        }
        let special =
            |token: &&str| serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}});
        let mut single: Vec<Value> = prefix.iter().map(special).collect();
        single.push(serde_json::json!({"Sequence": {"id": "A", "type_id": 0}}));
        single.extend(suffix.iter().map(special));
        let ids =
            |token: &str, id: u32| serde_json::json!({"id": token, "ids": [id], "tokens": [token]});
        let added = |token: &str, id: u32| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [added("<bos>", 1), added("<eos>", 2)],
            "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing", "single": single, "pair": [],
                "special_tokens": {"<bos>": ids("<bos>", 1), "<eos>": ids("<eos>", 2)}
            },
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        });
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tokenizer.json"), json.to_string()).unwrap();
        directory
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn bos_comes_from_the_post_processor() {
        for (prefix, suffix, expected) in [
            (vec![], vec![], vec![]),
            (vec![], vec!["<eos>"], vec![]),
            (vec!["<bos>"], vec![], vec![1]),
            (vec!["<bos>"], vec!["<eos>"], vec![1]),
            (vec!["<eos>", "<bos>"], vec![], vec![2, 1]),
        ] {
            let directory = testing::directory(&prefix, &suffix);
            let tokenizer = Tokenizer::open(directory.path()).unwrap();
            assert_eq!(tokenizer.prefix(), expected);
            assert_eq!(tokenizer.bos(), expected.first().copied());
            // Neither the special tokens nor the saved truncation to 4 apply.
            let ids = tokenizer.encode("w0 w1 w2 w3 w4 nothing").unwrap();
            assert_eq!(ids, [3, 4, 5, 6, 7, 0]);
            assert_eq!(tokenizer.decode(&[1, 3, 4]).unwrap(), "w0 w1");
        }
    }

    #[test]
    fn bos_comes_from_the_config_without_a_post_processor() {
        let directory = testing::directory(&[], &[]);
        let config = directory.path().join("tokenizer_config.json");
        for (text, expected) in [
            (r#"{"add_bos_token": false, "bos_token": "<bos>"}"#, None),
            (r#"{"add_bos_token": true, "bos_token": "<bos>"}"#, Some(1)),
            (
                r#"{"add_bos_token": true, "bos_token": {"content": "<bos>"}}"#,
                Some(1),
            ),
            (r#"{"add_bos_token": true, "bos_token": null}"#, None),
        ] {
            fs::write(&config, text).unwrap();
            let tokenizer = Tokenizer::open(directory.path()).unwrap();
            assert_eq!(tokenizer.bos(), expected, "{text}");
        }
    }

    #[test]
    fn eos_comes_from_the_first_file_that_names_it() {
        let directory = testing::directory(&[], &[]);
        let check = |name: &str, text: &str, expected: &[u32]| {
            fs::write(directory.path().join(name), text).unwrap();
            let tokenizer = Tokenizer::open(directory.path()).unwrap();
            assert_eq!(tokenizer.eos(), expected, "{name} {text}");
        };
        check("tokenizer_config.json", r#"{"eos_token": "<eos>"}"#, &[2]);
        check("config.json", r#"{"eos_token_id": null}"#, &[2]);
        check(
            "config.json",
            r#"{"text_config": {"eos_token_id": 5}}"#,
            &[5],
        );
        check("config.json", r#"{"eos_token_id": 7}"#, &[7]);
        check(
            "generation_config.json",
            r#"{"eos_token_id": [8, 9]}"#,
            &[8, 9],
        );
    }

    #[test]
    fn a_directory_without_tokenizer_json_says_how_to_make_one() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tokenizer.model"), "").unwrap();
        let error = Tokenizer::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains("only tokenizer.model"), "{error}");
        assert!(error.contains("save_pretrained"), "{error}");
        fs::write(directory.path().join("tokenizer.json"), "{").unwrap();
        let error = Tokenizer::open(directory.path()).err().unwrap();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
}
