//! Every way in which a directory of safetensors files can be right or wrong.

use std::fs;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// Files to put in a directory, and what then happens to a checkpoint opened there.
fn open(files: &[(&str, &[u8])]) -> (TempDir, Result<Checkpoint, Error>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        fs::write(dir.path().join(name), contents).unwrap();
    }
    let checkpoint = Checkpoint::open(dir.path());
    (dir, checkpoint)
}

fn open_error(files: &[(&str, &[u8])]) -> Error {
    let error = open(files).1.unwrap_err();
    assert!(!error.to_string().ends_with('.'), "{error}");
    error
}

/// A shard of float32 vectors.
fn shard(tensors: &[(&str, &[f32])]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, values), bytes)| {
        let view = TensorView::new(Dtype::F32, vec![values.len()], bytes).unwrap();
        (*name, view)
    });
    safetensors::serialize(views, None).unwrap()
}

fn raw_shard(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

fn index(weight_map: &Value) -> Vec<u8> {
    json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map })
        .to_string()
        .into_bytes()
}

#[test]
fn one_file_wins_over_its_neighbours() {
    let (dir, checkpoint) = open(&[
        (
            "model.safetensors",
            &shard(&[("b", &[1.0, 2.0]), ("a", &[])]),
        ),
        ("consolidated.safetensors", b"not looked at"),
    ]);
    let checkpoint = checkpoint.unwrap();
    assert_eq!(checkpoint.dir(), dir.path());
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.total_bytes(), 8);
    let info = checkpoint.info("b").unwrap();
    assert_eq!((info.dtype, info.shape.as_slice()), (Dtype::F32, &[2][..]));
    assert_eq!(info.file, dir.path().join("model.safetensors"));
    assert_eq!(checkpoint.bytes("b").unwrap(), [0, 0, 128, 63, 0, 0, 0, 64]);
    assert!(checkpoint.contains("a") && !checkpoint.contains("c"));
    let tensor = checkpoint.tensor("b", &[2]).unwrap();
    assert_eq!(tensor::to_f32(&tensor).unwrap(), [1.0, 2.0]);
    assert_eq!(checkpoint.tensor("a", &[0]).unwrap().numel(), 0);
}

#[test]
fn the_index_names_the_shards() {
    let (_dir, checkpoint) = open(&[
        ("two.safetensors", &shard(&[("b", &[2.0])])),
        (
            "one.safetensors",
            &shard(&[("a", &[1.0]), ("unlisted", &[3.0])]),
        ),
        ("other.safetensors", b"not looked at"),
        (
            INDEX_FILE,
            &index(&json!({ "a": "one.safetensors", "b": "two.safetensors" })),
        ),
    ]);
    let checkpoint = checkpoint.unwrap();
    assert_eq!(
        checkpoint.names().collect::<Vec<_>>(),
        ["a", "b", "unlisted"]
    );
    let tensor = checkpoint.tensor("b", &[1]).unwrap();
    assert_eq!(tensor::to_f32(&tensor).unwrap(), [2.0]);
}

#[test]
fn without_an_index_all_files_are_shards() {
    let (_dir, checkpoint) = open(&[
        ("y.safetensors", &shard(&[("a", &[1.0])])),
        ("x.safetensors", &shard(&[("b", &[2.0])])),
        ("z.txt", b"text"),
    ]);
    assert_eq!(checkpoint.unwrap().names().count(), 2);
}

#[test]
fn missing_directory() {
    let error = Checkpoint::open(Path::new("/nonexistent/model")).unwrap_err();
    assert!(matches!(error, Error::NoDirectory { .. }), "{error}");
}

#[test]
fn file_instead_of_a_directory() {
    let (dir, _) = open(&[("model.safetensors", b"")]);
    let error = Checkpoint::open(&dir.path().join("model.safetensors")).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
}

#[test]
fn weights_of_another_format() {
    let error = open_error(&[("pytorch_model.bin", b""), ("config.json", b"{}")]);
    assert!(
        matches!(&error, Error::OtherWeights { found, .. } if found == &["pytorch_model.bin"]),
        "{error}"
    );
}

#[test]
fn no_weights() {
    let error = open_error(&[("README.md", b""), ("config.json", b"{}")]);
    assert!(
        error.to_string().ends_with("README.md, config.json"),
        "{error}"
    );
    let error = open_error(&[]);
    assert!(error.to_string().ends_with("nothing"), "{error}");
}

#[test]
fn truncated_data() {
    let whole = shard(&[("a", &[1.0, 2.0, 3.0])]);
    let error = open_error(&[("model.safetensors", &whole[..whole.len() - 5])]);
    assert!(
        matches!(error, Error::FileLength { expected, found, .. }
            if expected == whole.len() && found == whole.len() - 5),
        "{error}"
    );
}

#[test]
fn truncated_header() {
    let whole = shard(&[("a", &[1.0])]);
    for len in [0, 7, 8, 9, 20] {
        let error = open_error(&[("model.safetensors", &whole[..len])]);
        assert!(
            matches!(error, Error::FileLength { found, .. } if found == len),
            "{error}"
        );
    }
}

#[test]
fn trailing_bytes() {
    let mut long = shard(&[("a", &[1.0])]);
    long.push(0);
    let error = open_error(&[("model.safetensors", &long)]);
    assert!(matches!(error, Error::FileLength { .. }), "{error}");
}

#[test]
fn lfs_pointer() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let error = open_error(&[("model.safetensors", pointer)]);
    assert!(matches!(error, Error::LfsPointer { .. }), "{error}");
}

#[test]
fn malformed_headers() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let huge = "[9223372036854775807,9223372036854775807]";
    for (what, file) in [
        ("html", b"<!DOCTYPE html><html>".to_vec()),
        ("not json", raw_shard("{\"a\":", b"")),
        ("not utf-8", [&2u64.to_le_bytes()[..], b"\xff\xfe"].concat()),
        ("an array", raw_shard("[]", b"")),
        (
            "unknown dtype",
            raw_shard(&entry("Q4", "[1]", "[0,4]"), &[0; 4]),
        ),
        (
            "size and shape differ",
            raw_shard(&entry("F32", "[2]", "[0,4]"), &[0; 4]),
        ),
        ("a hole", raw_shard(&entry("F32", "[1]", "[4,8]"), &[0; 8])),
        (
            "reversed offsets",
            raw_shard(&entry("F32", "[0]", "[4,0]"), &[0; 4]),
        ),
        (
            "negative shape",
            raw_shard(&entry("F32", "[-1]", "[0,4]"), &[0; 4]),
        ),
        ("overflow", raw_shard(&entry("F32", huge, "[0,4]"), &[0; 4])),
        (
            "half a byte",
            raw_shard(&entry("F4", "[1]", "[0,1]"), &[0; 1]),
        ),
    ] {
        let error = open_error(&[("model.safetensors", &file)]);
        assert!(matches!(error, Error::Header { .. }), "{what}: {error}");
    }
    // As long as memory is wide: the sum with the header's own length must not overflow.
    let file = raw_shard(
        &entry("U8", "[18446744073709551615]", "[0,18446744073709551615]"),
        b"",
    );
    let error = open_error(&[("model.safetensors", &file)]);
    assert!(
        matches!(error, Error::FileLength { .. } | Error::Header { .. }),
        "{error}"
    );
}

#[test]
fn malformed_index() {
    for json in ["", "[]", "{}", r#"{"weight_map":{"a":1}}"#] {
        let error = open_error(&[(INDEX_FILE, json.as_bytes())]);
        assert!(matches!(error, Error::Index { .. }), "{json}: {error}");
    }
}

#[test]
fn missing_shards() {
    let map = json!({ "a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors", "d": "3.safetensors" });
    let error = open_error(&[
        (INDEX_FILE, &index(&map)),
        ("1.safetensors", &shard(&[("a", &[])])),
    ]);
    assert!(
        matches!(&error, Error::MissingShards { missing, .. }
            if missing == &["2.safetensors", "3.safetensors"]),
        "{error}"
    );
}

#[test]
fn index_and_shards_disagree() {
    let one = shard(&[("a", &[])]);
    let two = shard(&[("b", &[])]);
    for map in [
        json!({ "a": "2.safetensors", "b": "2.safetensors" }),
        json!({ "a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors" }),
    ] {
        let error = open_error(&[
            (INDEX_FILE, &index(&map)),
            ("1.safetensors", &one),
            ("2.safetensors", &two),
        ]);
        assert!(matches!(error, Error::NotInShard { .. }), "{error}");
    }
}

#[test]
fn the_same_tensor_in_two_shards() {
    let error = open_error(&[
        ("1.safetensors", &shard(&[("a", &[1.0])])),
        ("2.safetensors", &shard(&[("a", &[1.0])])),
    ]);
    assert!(
        matches!(&error, Error::Duplicate { name, first, second }
            if name == "a" && first.ends_with("1.safetensors") && second.ends_with("2.safetensors")),
        "{error}"
    );
}

#[test]
fn wrong_requests_are_errors() {
    let header = r#"{"i":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"f":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]}}"#;
    let (_dir, checkpoint) = open(&[("model.safetensors", &raw_shard(header, &[0; 8]))]);
    let checkpoint = checkpoint.unwrap();
    assert_eq!(checkpoint.bytes("i").unwrap(), [0; 4]);
    let error = checkpoint.tensor("i", &[1]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Dtype {
                found: Dtype::I32,
                ..
            }
        ),
        "{error}"
    );
    let error = checkpoint.tensor("f", &[2]).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { found, expected, .. } if found == &[2, 1] && expected == &[2]),
        "{error}"
    );
    let error = checkpoint.tensor("g", &[2]).unwrap_err();
    assert!(matches!(error, Error::NoTensor { .. }), "{error}");
    let error = checkpoint.rows("f", [2, 1], &[1, 2], 0..1).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Row {
                row: 2,
                n_rows: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(checkpoint.bytes("g").is_err());
    checkpoint.release("g");
}

#[test]
fn rows_are_those_asked_for() {
    let header = r#"{"table":{"dtype":"BF16","shape":[4,3],"data_offsets":[0,24]}}"#;
    let data: Vec<u8> = (0..12)
        .flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes())
        .collect();
    let (_dir, checkpoint) = open(&[("model.safetensors", &raw_shard(header, &data))]);
    let checkpoint = checkpoint.unwrap();
    let rows = |ids: &[u32]| {
        let rows = checkpoint.rows("table", [4, 3], ids, 0..3).unwrap();
        assert_eq!(rows.size(), [ids.len() as i64, 3]);
        assert_eq!(rows.kind(), tch::Kind::BFloat16);
        tensor::to_f32(&rows).unwrap()
    };
    assert_eq!(
        rows(&[3, 0, 3]),
        [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0]
    );
    assert!(rows(&[]).is_empty());
    let part = checkpoint.rows("table", [4, 3], &[1, 3], 1..3).unwrap();
    assert_eq!(part.size(), [2, 2]);
    assert_eq!(tensor::to_f32(&part).unwrap(), [4.0, 5.0, 10.0, 11.0]);
    assert!(checkpoint.rows("table", [3, 4], &[0], 0..4).is_err());
}

#[test]
fn threads_may_share_a_checkpoint() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Checkpoint>();
}

/// Resident KiB of the mappings of `file`.
fn resident_kib(file: &Path) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut total = 0;
    for line in maps.lines() {
        if let Some(kib) = line.strip_prefix("Rss:").filter(|_| ours) {
            total += kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
            ours = false;
        } else if line.ends_with(file.to_str().unwrap()) {
            ours = true;
        }
    }
    total
}

#[test]
fn released_pages_leave_the_resident_set() {
    let values = vec![1.0; 1 << 20];
    let (dir, checkpoint) = open(&[("model.safetensors", &shard(&[("a", &values)]))]);
    let checkpoint = checkpoint.unwrap();
    let file = dir.path().join("model.safetensors");
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    let before = sum(checkpoint.bytes("a").unwrap());
    assert!(resident_kib(&file) >= 4096, "{}", resident_kib(&file));
    checkpoint.release("a");
    assert!(resident_kib(&file) < 128, "{}", resident_kib(&file));
    assert_eq!(sum(checkpoint.bytes("a").unwrap()), before);
    let _ = checkpoint.tensor("a", &[1 << 20]).unwrap();
    assert!(resident_kib(&file) < 128, "{}", resident_kib(&file));
}
