//! A Hugging Face model directory, in and out: safetensors shards, their index, and the files beside them.
//!
//! Tensors are names, dtypes, shapes and bytes here; nothing knows what a tensor is for. Formats:
//! <https://huggingface.co/docs/safetensors> and the `model.safetensors.index.json` that transformers writes.

mod header;
mod index;
mod journal;
mod map;
mod plan;
mod reader;
mod sidecars;
mod target;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
};

use safetensors::Dtype;

pub use plan::TensorSpec;
pub use reader::{Checkpoint, TensorInfo};
pub use target::unfinished_bytes;
pub use writer::Writer;

/// What can be wrong with a model directory, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is at the path.
    #[error("{dir} does not exist; give the directory of a downloaded model")]
    NoDirectory { dir: PathBuf },
    /// A file where a directory was expected.
    #[error(
        "{path} is not a directory; give the directory that holds config.json and the *.safetensors files"
    )]
    NotADirectory { path: PathBuf },
    /// Weights, but only in a format that is not read.
    #[error(
        "{dir} holds no *.safetensors file, only {}; convert the weights to safetensors first \
         (transformers: save_pretrained)", .found.join(", ")
    )]
    OtherWeights { dir: PathBuf, found: Vec<String> },
    /// No weights at all.
    #[error("{dir} holds no *.safetensors file; found {}", list_or_nothing(.found))]
    NoWeights { dir: PathBuf, found: Vec<String> },
    /// The index is not what transformers writes.
    #[error("{file} is not a safetensors index: {reason}; download it again")]
    Index { file: PathBuf, reason: String },
    /// Shards that the index names are not there.
    #[error("{index} names {} missing file(s): {}; download them", .missing.len(), .missing.join(", "))]
    MissingShards {
        index: PathBuf,
        missing: Vec<String>,
    },
    /// The index places a tensor in a shard that lacks it.
    #[error("{index} places {name} in {file}, which does not hold it; download both again")]
    NotInShard {
        index: PathBuf,
        name: String,
        file: String,
    },
    /// `git clone` without git-lfs.
    #[error("{file} is a git-lfs pointer, not the weights; run `git lfs pull` in its directory")]
    LfsPointer { file: PathBuf },
    /// The header is not safetensors, or contradicts itself.
    #[error("{file} has no valid safetensors header: {reason}; download it again")]
    Header { file: PathBuf, reason: String },
    /// The file does not end where its last tensor does.
    #[error(
        "{file} holds {found} bytes where its header needs {expected}: truncated or damaged; download it again"
    )]
    FileLength {
        file: PathBuf,
        expected: usize,
        found: usize,
    },
    /// Two shards hold the same tensor.
    #[error(
        "{name} is in both {first} and {second}; remove the file that does not belong to the model"
    )]
    Duplicate {
        name: String,
        first: PathBuf,
        second: PathBuf,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("{dir} has no tensor {name}")]
    NoTensor { dir: PathBuf, name: String },
    /// A tensor is not as large as the model's config says.
    #[error(
        "{file}: {name} has shape {found:?}, expected {expected:?}; do config.json and the weights belong together?"
    )]
    Shape {
        file: PathBuf,
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    /// Not a float dtype.
    #[error(
        "{file}: {name} is {found}, expected F32, F16 or BF16; give the model before quantization"
    )]
    Dtype {
        file: PathBuf,
        name: String,
        found: Dtype,
    },
    /// A row beyond the end of a table.
    #[error(
        "{file}: {name} has {n_rows} rows, row {row} was asked for; do the tokenizer and the model belong together?"
    )]
    Row {
        file: PathBuf,
        name: String,
        row: u32,
        n_rows: usize,
    },
    /// The bytes did not become a tensor.
    #[error("{file}: {name}: {source}")]
    Tensor {
        file: PathBuf,
        name: String,
        source: crate::tensor::Error,
    },
    /// The output path names nothing that could be created.
    #[error("{target} does not name a directory to create")]
    TargetName { target: PathBuf },
    /// The output is there already.
    #[error("{target} exists; give --overwrite to replace it, or another directory")]
    TargetExists { target: PathBuf },
    /// What would be replaced is not a model, and might be anything.
    #[error(
        "{target} exists and does not look like a model (no config.json), so it is not replaced; remove it or give another directory"
    )]
    TargetNotAModel { target: PathBuf },
    /// Another process is writing the same model.
    #[error("process {pid} is writing {partial}; wait for it, or choose another --output")]
    Busy { partial: PathBuf, pid: String },
    /// An unfinished run that is not this one.
    #[error(
        "{partial} holds an unfinished run with other {}; run that command again to go on with it, or give --restart to start over",
        .differences.join(", ")
    )]
    OtherRun {
        partial: PathBuf,
        differences: Vec<String>,
    },
    /// The file system is full.
    #[error("no space left on the disk for {file}; the whole model takes {total_bytes} bytes")]
    DiskFull { file: PathBuf, total_bytes: u64 },
    /// Tensors were planned and never written.
    #[error("{count} planned tensor(s) were not written, the first is {first}")]
    Unwritten { first: String, count: usize },
    /// All is written, but the directory could not get its name.
    #[error(
        "cannot rename {partial} to {target}: {source}; the model in {partial} is complete: move it yourself"
    )]
    Rename {
        partial: PathBuf,
        target: PathBuf,
        source: io::Error,
    },
    /// The output's place belongs to somebody else, or is mounted to be read only.
    #[error(
        "{}: this user ({uid}) may not write there; name another --output, or run as the directory's owner (in a container with --user \
         \"$(id -u):$(id -g)\")",
        directory.display()
    )]
    NotWritable {
        directory: PathBuf,
        uid: u32,
        source: io::Error,
    },
    /// Any other failure of the file system.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl Error {
    /// For `map_err`: the failure of an operation on `path`.
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// The same for the first thing that is written into `directory`.
    fn first_write(directory: &Path) -> impl FnOnce(io::Error) -> Self {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        let directory = directory.to_path_buf();
        move |source| match source.kind() {
            PermissionDenied | ReadOnlyFilesystem => Self::NotWritable {
                directory,
                uid: rustix::process::geteuid().as_raw(),
                source,
            },
            _ => Self::Io {
                path: directory,
                source,
            },
        }
    }
}

fn list_or_nothing(names: &[String]) -> String {
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}
