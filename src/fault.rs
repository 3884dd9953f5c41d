//! Whose fault a failure is, which decides the program's exit code.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::{calibration, checkpoint, cli, device, kernels, model, pack, quant, tensor};

/// The kinds of failure that a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A bug of ours, or something that nobody foresaw.
    Internal = 1,
    /// The command line asks for what does not exist or contradicts itself.
    Usage = 2,
    /// A file that was given is missing, broken or not supported.
    Input = 3,
    /// Memory, disk or a device is missing or full.
    Resource = 4,
}

impl Fault {
    /// The fault behind `error`: the first cause in its chain that tells.
    pub fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(classify).unwrap_or(Self::Internal)
    }
}

fn classify(cause: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    if let Some(error) = cause.downcast_ref::<tch::TchError>() {
        return error
            .to_string()
            .contains("out of memory")
            .then_some(Fault::Resource);
    }
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        use std::io::ErrorKind::{
            OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
        };
        let resource = [
            OutOfMemory,
            StorageFull,
            QuotaExceeded,
            PermissionDenied,
            ReadOnlyFilesystem,
        ];
        return resource.contains(&error.kind()).then_some(Fault::Resource);
    }
    if cause.is::<device::Error>() || cause.is::<ResourceError>() {
        return Some(Fault::Resource);
    }
    if cause.is::<cli::settings::Error>() || cause.is::<kernels::Unavailable>() {
        return Some(Fault::Usage);
    }
    let input = cause.is::<InputError>()
        || cause.is::<calibration::Error>()
        || cause.is::<checkpoint::Error>()
        || cause.is::<model::Error>()
        || cause.is::<pack::Error>();
    let torch = cause.is::<quant::Error>() || cause.is::<tensor::Error>();
    (input && !torch && cause.source().and_then(classify).is_none()).then_some(Fault::Input)
}

/// Memory or disk that is too small: by how much, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{problem}; {remedy}")]
pub struct ResourceError {
    pub problem: String,
    pub remedy: &'static str,
}

/// A file that cannot be used: which, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}; {remedy}", path.display())]
pub struct InputError {
    pub path: PathBuf,
    pub problem: String,
    pub remedy: String,
}

impl InputError {
    pub fn new(path: &Path, problem: impl Display, remedy: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.to_string(),
            remedy: remedy.into(),
        }
    }
}
