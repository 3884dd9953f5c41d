//! Which files make up a checkpoint: one, the shards of `model.safetensors.index.json`, or all that are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::json;

use super::Error;

/// The name of a checkpoint that is one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the index of a checkpoint of several.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Endings of weights that are not read, told from other files to give the right advice.
const OTHER_WEIGHTS: [&str; 8] = ["bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf"];

/// `model.safetensors.index.json`: the file of each tensor.
#[derive(Debug, Deserialize)]
pub struct Index {
    pub weight_map: BTreeMap<String, String>,
}

impl Index {
    /// The contents of the file, laid out as transformers does.
    pub fn to_json(&self, total_bytes: u64) -> String {
        let json = json!({
            "metadata": { "total_size": total_bytes },
            "weight_map": self.weight_map,
        });
        format!("{json:#}\n")
    }

    fn read(file: &Path) -> Result<Self, Error> {
        let json = fs::read(file).map_err(Error::io(file))?;
        serde_json::from_slice(&json).map_err(|error| Error::Index {
            file: file.to_path_buf(),
            reason: error.to_string(),
        })
    }
}

/// The shards of the checkpoint in `dir` in name order, and the index where that names them.
pub fn shards(dir: &Path) -> Result<(Vec<PathBuf>, Option<Index>), Error> {
    if !dir.exists() {
        return Err(Error::NoDirectory {
            dir: dir.to_path_buf(),
        });
    }
    if !dir.is_dir() {
        return Err(Error::NotADirectory {
            path: dir.to_path_buf(),
        });
    }
    let single = dir.join(SINGLE_FILE);
    if single.exists() {
        return Ok((vec![single], None));
    }
    let index_file = dir.join(INDEX_FILE);
    if index_file.exists() {
        let index = Index::read(&index_file)?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        let missing: Vec<String> = names
            .iter()
            .filter(|name| !dir.join(name).exists())
            .map(ToString::to_string)
            .collect();
        if !missing.is_empty() {
            return Err(Error::MissingShards {
                index: index_file,
                missing,
            });
        }
        let files = names.into_iter().map(|name| dir.join(name)).collect();
        return Ok((files, Some(index)));
    }
    let names = file_names(dir)?;
    let with_ending = |endings: &[&str]| -> Vec<String> {
        let matches = |name: &&String| {
            Path::new(name)
                .extension()
                .is_some_and(|ending| endings.iter().any(|&known| ending == known))
        };
        names.iter().filter(matches).cloned().collect()
    };
    let files = with_ending(&["safetensors"]);
    if !files.is_empty() {
        let files = files.into_iter().map(|name| dir.join(name)).collect();
        return Ok((files, None));
    }
    let dir = dir.to_path_buf();
    let found = with_ending(&OTHER_WEIGHTS);
    Err(if found.is_empty() {
        Error::NoWeights { dir, found: names }
    } else {
        Error::OtherWeights { dir, found }
    })
}

/// Names of all entries of `dir`, sorted; those that are not UTF-8 cannot be weights and only serve messages.
fn file_names(dir: &Path) -> Result<Vec<String>, Error> {
    let mut names = fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<Vec<_>, _>>()
        })
        .map_err(Error::io(dir))?;
    names.sort();
    Ok(names)
}
