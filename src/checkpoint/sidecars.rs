//! The files beside the weights: tokenizer, chat template, generation config, licence, custom code.
//!
//! They are copied byte for byte. Loading and saving them again through a library is what loses or rewrites them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Error;

/// Files by their exact name that are written anew or would be wrong beside other weights.
const EXCLUDED: [&str; 5] = [
    "config.json",
    "quantize_config.json",
    "quant_config.json",
    super::journal::JOURNAL,
    super::journal::IDENTITY,
];
/// Weights in any format and their indexes.
const EXCLUDED_ENDINGS: [&str; 11] = [
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
];
/// A report of an earlier quantization.
const EXCLUDED_START: &str = "quantization_report.";
/// Sub-directories that belong to a tokenizer or processor; others hold training states or other weights.
const DIRECTORIES: [&str; 1] = ["additional_chat_templates"];

/// Copies the side files of `source` into `target` and returns their names, sorted; symbolic links are followed.
pub fn copy(source: &Path, target: &Path) -> Result<Vec<String>, Error> {
    let mut copied = copy_files(source, target)?;
    for name in DIRECTORIES {
        let inner = source.join(name);
        if inner.is_dir() {
            let inner_target = target.join(name);
            fs::create_dir_all(&inner_target).map_err(Error::io(&inner_target))?;
            let names = copy_files(&inner, &inner_target)?;
            copied.extend(names.into_iter().map(|file| format!("{name}/{file}")));
        }
    }
    copied.sort();
    Ok(copied)
}

fn copy_files(source: &Path, target: &Path) -> Result<Vec<String>, Error> {
    let mut copied = Vec::new();
    for path in entries(source).map_err(Error::io(source))? {
        let Some(file_name) = path.file_name() else {
            continue;
        };
        let name = file_name.to_string_lossy().into_owned();
        // Through a link, so that a dangling one is an error and not a tokenizer that is silently missing.
        let is_file = |path: &Path| Ok(fs::metadata(path)?.is_file());
        if is_sidecar(&name) && is_file(&path).map_err(Error::io(&path))? {
            fs::copy(&path, target.join(file_name)).map_err(Error::io(&path))?;
            copied.push(name);
        }
    }
    Ok(copied)
}

fn is_sidecar(name: &str) -> bool {
    let excluded = EXCLUDED.contains(&name)
        || EXCLUDED_ENDINGS.iter().any(|ending| name.ends_with(ending))
        || name.starts_with(EXCLUDED_START)
        || name.starts_with('.');
    !excluded
}

/// Paths of what `dir` holds.
pub fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn side_files_are_copied_byte_for_byte() {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let contents = |name: &str| format!("\u{feff}{name}\r\n\0").into_bytes();
        let kept = [
            "LICENSE",
            "README.md",
            "added_tokens.json",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "generation_config.json",
            "merges.txt",
            "modeling_custom.py",
            "tokenizer.json",
            "tokenizer.model",
        ];
        let left = [
            ".gitattributes",
            ".cache/huggingface",
            "config.json",
            "flax_model.msgpack",
            "journal.jsonl",
            "model-00001-of-00002.safetensors",
            "model.gguf",
            "model.safetensors.index.json",
            "model.safetensors",
            "onnx/model.json",
            "original/params.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "quant_config.json",
            "quantization_report.html",
            "quantize_config.json",
            "run.json",
            "tf_model.h5",
            "training.pt",
            "weights.ckpt",
            "weights.pth",
        ];
        for name in kept.iter().chain(&left) {
            let path = source.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents(name)).unwrap();
        }
        assert_eq!(copy(source.path(), target.path()).unwrap(), kept);
        for name in kept {
            assert_eq!(fs::read(target.path().join(name)).unwrap(), contents(name));
        }
        // The files and one directory, nothing else.
        assert_eq!(entries(target.path()).unwrap().len(), kept.len());
    }

    #[test]
    fn links_are_followed() {
        let source = tempfile::tempdir().unwrap();
        let blobs = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        fs::write(blobs.path().join("0123"), "text").unwrap();
        symlink(blobs.path().join("0123"), source.path().join("vocab.json")).unwrap();
        assert_eq!(copy(source.path(), target.path()).unwrap(), ["vocab.json"]);
        let copied = target.path().join("vocab.json");
        assert!(copied.symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read(copied).unwrap(), b"text");
    }

    #[test]
    fn dangling_links_are_errors() {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        symlink("gone", source.path().join("vocab.json")).unwrap();
        let error = copy(source.path(), target.path()).unwrap_err();
        assert!(error.to_string().contains("vocab.json"), "{error}");
    }
}
