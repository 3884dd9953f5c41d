//! The device that computes, its memory and the host's.
//!
//! The only module that asks whether there is CUDA. A plain build is not linked to libtorch's CUDA library; here it is
//! loaded, once, before the first question, and only where there is a driver: without one it would cost a second and
//! hundreds of megabytes for nothing.

pub mod environment;
pub mod memory;
pub mod rates;
pub mod vram;

use std::ffi::CStr;
use std::str::FromStr;
use std::sync::OnceLock;

use tch::{Cuda, Device, Kind};

/// Gives libtorch and our own kernels the same number of threads; they never compute at the same time.
///
/// # Errors
/// If our own pool runs already: the number is chosen once, before any work.
pub fn use_threads(threads: usize) -> Result<(), rayon::ThreadPoolBuildError> {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
}

/// The device that was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first GPU where one can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number, as CUDA counts.
    Cuda(usize),
}

/// What can be wrong with a choice of device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a choice.
    #[error("unknown device {0:?}; expected auto, cpu, cuda or cuda:N")]
    Unknown(String),
    /// No NVIDIA driver.
    #[error("no CUDA: the NVIDIA driver is not installed ({reason})")]
    NoDriver { reason: String },
    /// libtorch without its CUDA part.
    #[error("no CUDA: libtorch's CUDA library is missing ({reason}); run `make libtorch CUDA=1`")]
    NoLibrary { reason: String },
    /// Driver and library, but nothing to run on.
    #[error(
        "no CUDA: the driver shows no usable GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES, and whether the driver is \
         new enough for libtorch's CUDA"
    )]
    NoGpu,
    /// A number beyond the last GPU.
    #[error("no device cuda:{index}: the last of the {count} GPUs is cuda:{}", count - 1)]
    NoSuchGpu { index: usize, count: usize },
}

impl FromStr for Choice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::Unknown(text.to_owned());
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

/// The device to compute on. An asked-for GPU that cannot be used is an error, never the CPU in its place.
pub fn select(choice: Choice) -> Result<Device, Error> {
    match choice {
        Choice::Cpu => Ok(Device::Cpu),
        Choice::Cuda(index) => match gpu_count()? {
            count if index < count => Ok(Device::Cuda(index)),
            count => Err(Error::NoSuchGpu { index, count }),
        },
        Choice::Auto => Ok(match gpu_count() {
            Ok(_) => Device::Cuda(0),
            Err(reason) => {
                tracing::info!("computing on the CPU: {reason}");
                Device::Cpu
            }
        }),
    }
}

/// The kind for forward passes: bfloat16 where the device multiplies it fast, else float32 on a CPU and float16 on a GPU.
///
/// A GPU counts as fast from compute capability 8.0 on, by the lowest of the machine's GPUs, because NVML's numbers need
/// not be CUDA's; where NVML is missing (some containers) it is taken to be such a one, the rule today.
pub fn default_kind(device: Device) -> Kind {
    match device {
        Device::Cuda(_) => match vram::lowest_compute_capability() {
            Some(capability) if capability < (8, 0) => Kind::Half,
            _ => Kind::BFloat16,
        },
        _ if cpu_has_fast_bf16() => Kind::BFloat16,
        _ => Kind::Float,
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has_fast_bf16() -> bool {
    // The standard library's detection of AMX is not stable.
    let has_amx = || {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        cpuinfo.split_whitespace().any(|flag| flag == "amx_bf16")
    };
    is_x86_feature_detected!("avx512bf16") || has_amx()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has_fast_bf16() -> bool {
    false
}

/// How many GPUs can be used, at least one.
fn gpu_count() -> Result<usize, Error> {
    static LOADED: OnceLock<Result<(), Error>> = OnceLock::new();
    LOADED.get_or_init(load_cuda).clone()?;
    match usize::try_from(Cuda::device_count()) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Error::NoGpu),
    }
}

/// Loads libtorch's CUDA part, whose constructors register it with libtorch.
fn load_cuda() -> Result<(), Error> {
    dlopen(c"libcuda.so.1", libc::RTLD_LAZY).map_err(|reason| Error::NoDriver { reason })?;
    dlopen(c"libtorch_cuda.so", libc::RTLD_NOW | libc::RTLD_GLOBAL)
        .map_err(|reason| Error::NoLibrary { reason })
}

/// Loads a shared library for good; the error is the loader's.
#[expect(unsafe_code, reason = "the dynamic loader has no safe interface")]
fn dlopen(name: &CStr, flags: libc::c_int) -> Result<(), String> {
    // SAFETY: `name` ends in a zero byte. The two libraries named above run their own constructors, as they do in every
    // program linked to them; they are never unloaded. `dlerror` gives null or text that is valid until this thread's
    // next call of the loader, and it is copied here.
    unsafe {
        if !libc::dlopen(name.as_ptr(), flags).is_null() {
            return Ok(());
        }
        let reason = libc::dlerror();
        if reason.is_null() {
            return Err(format!("{} cannot be loaded", name.to_string_lossy()));
        }
        Err(CStr::from_ptr(reason).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn choices_are_parsed() {
        for (text, expected) in [
            ("auto", Choice::Auto),
            ("cpu", Choice::Cpu),
            ("cuda", Choice::Cuda(0)),
            ("cuda:3", Choice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert_eq!(text.parse::<Choice>(), Err(Error::Unknown(text.into())));
        }
    }

    #[test]
    fn a_gpu_is_used_or_refused_but_never_replaced() {
        assert_eq!(select(Choice::Cpu), Ok(Device::Cpu));
        match select(Choice::Cuda(0)) {
            Ok(device) => {
                assert_eq!(device, Device::Cuda(0));
                assert_eq!(select(Choice::Auto), Ok(device));
                let error = select(Choice::Cuda(4096)).unwrap_err();
                assert!(matches!(error, Error::NoSuchGpu { .. }), "{error}");
            }
            Err(error) => {
                assert!(error.to_string().starts_with("no CUDA: "), "{error}");
                assert_eq!(select(Choice::Auto), Ok(Device::Cpu));
                assert_eq!(select(Choice::Cuda(1)), Err(error));
            }
        }
    }

    #[test]
    fn a_library_that_is_missing_is_an_error() {
        let reason = dlopen(c"libnibble-missing.so", libc::RTLD_LAZY).unwrap_err();
        assert!(reason.contains("libnibble-missing.so"), "{reason}");
    }

    #[test]
    fn the_kind_fits_the_device() {
        let kind = default_kind(Device::Cpu);
        assert!(matches!(kind, Kind::BFloat16 | Kind::Float), "{kind:?}");
    }
}
