//! Whose fault a failure is, which decides the program's exit code.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use tch::TchError;

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

/// What the program says of `error`, in one line: all causes, and the remedy where the GPU's memory was too small.
pub fn message(error: &anyhow::Error) -> String {
    let text = first_line(error);
    if is_full_gpu(error) {
        return format!(
            "{text}; lower --batch-size, free the GPU's memory (nvidia-smi says who holds it), or compute on the CPU with \
             --force-cpu"
        );
    }
    text
}

/// All causes in one line: libtorch adds where in its sources it gave up, line by line.
pub fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().next().unwrap_or_default().to_owned()
}

/// Whether the GPU's memory was too small.
pub fn is_full_gpu(error: &anyhow::Error) -> bool {
    let is_full = |cause: &TchError| {
        let text = cause.to_string();
        let libraries = ["CUBLAS", "CUSOLVER"].map(|name| format!("{name}_STATUS_ALLOC_FAILED"));
        text.contains("CUDA out of memory") || libraries.iter().any(|name| text.contains(name))
    };
    (error.chain())
        .filter_map(|cause| cause.downcast_ref())
        .any(is_full)
}

fn classify(cause: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    if let Some(error) = cause.downcast_ref::<TchError>() {
        let text = error.to_string();
        let full = text.contains("out of memory") || text.contains("_STATUS_ALLOC_FAILED");
        return full.then_some(Fault::Resource);
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

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn a_full_gpu_is_named_with_its_remedy_in_one_line() {
        for (text, full) in [
            (
                "CUDA out of memory. Tried to allocate 2 GiB.\nException raised from malloc",
                true,
            ),
            (
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
                true,
            ),
            ("size mismatch\nException raised from f", false),
        ] {
            let error = anyhow::Error::new(TchError::Torch(text.to_owned()));
            let error = error.context("layer 3, input of MLP output");
            let message = message(&error);
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(
                message.starts_with("layer 3, input of MLP output: "),
                "{message}"
            );
            assert_eq!(message.contains("lower --batch-size"), full, "{message}");
            assert_eq!(Fault::of(&error) == Fault::Resource, full, "{message}");
        }
    }

    #[test]
    fn what_libtorch_says_is_cut_to_its_first_line() {
        let options = (Kind::Float, tch::Device::Cpu);
        let wide = Tensor::zeros([2, 3], options);
        let error = anyhow::Error::new(wide.f_mm(&wide).unwrap_err());
        let message = message(&error);
        assert!(message.contains("2x3"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}
