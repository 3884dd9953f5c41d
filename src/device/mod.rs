//! The device that computes, its memory and the host's.
//!
//! The only module that asks whether there is CUDA. A plain build is not linked to libtorch's CUDA library; here it is
//! loaded, once, and only where there are a driver and a GPU: without them it would cost a second and hundreds of megabytes
//! for nothing.

pub mod cpu;
pub mod driver;
pub mod environment;
pub mod memory;
pub mod monitor;
pub mod nvml;
pub mod rates;

use std::ffi::c_int;
use std::str::FromStr;
use std::sync::OnceLock;

use tch::{Cuda, Device, Kind, TchError, Tensor};

use driver::{Driver, Gpu, Version};

/// The least compute capability that libtorch has code for: CUDA 13 left out everything before Turing.
const LEAST_CAPABILITY: (i32, i32) = (7, 5);

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
    #[error(
        "no CUDA: the NVIDIA driver is not installed ({reason}); install it, or start the container with its GPUs \
         (--gpus all)"
    )]
    NoDriver { reason: String },
    /// The driver refuses, with CUDA's own number and name.
    #[error("no CUDA: the driver (CUDA {driver}) says {code}, {name}; {}", remedy(*code))]
    Driver {
        code: c_int,
        name: String,
        driver: Version,
    },
    /// A driver for less than libtorch's CUDA.
    #[error(
        "no CUDA: the driver is too old: it runs CUDA {driver}, libtorch is built for CUDA {libtorch}; update the driver"
    )]
    OldDriver { driver: Version, libtorch: Version },
    /// Driver and library, but nothing to run on.
    #[error("no CUDA: the driver shows no GPU; {}", remedy(NO_DEVICE))]
    NoGpu,
    /// libtorch without its CUDA part.
    #[error(
        "no CUDA: libtorch's CUDA library is missing ({reason}); run `make libtorch CUDA=1`, or use the image with CUDA"
    )]
    NoLibrary { reason: String },
    /// The driver shows GPUs, libtorch does not.
    #[error("no CUDA: the driver shows {0} GPUs, libtorch none; see nvidia-smi")]
    NotCounted(usize),
    /// A GPU that fails at a first product.
    #[error("no CUDA: cuda:{index} cannot multiply: {reason}; see nvidia-smi and dmesg")]
    Broken { index: usize, reason: String },
    /// A GPU that does not compute as promised.
    #[error(
        "no CUDA: cuda:{index} rounds the factors of float32 products (TF32); take TORCH_ALLOW_TF32_CUBLAS_OVERRIDE out of \
         the environment"
    )]
    Rounds { index: usize },
    /// A number beyond the last GPU.
    #[error("no device cuda:{index}: the last of the {count} GPUs is cuda:{}", count - 1)]
    NoSuchGpu { index: usize, count: usize },
    /// A GPU that libtorch has no code for.
    #[error(
        "no CUDA: {} (cuda:{index}) has compute capability {}.{}, libtorch needs {}.{} or more; choose another GPU with \
         --device cuda:N, or the CPU with --force-cpu",
        gpu.name, gpu.capability.0, gpu.capability.1, LEAST_CAPABILITY.0, LEAST_CAPABILITY.1
    )]
    OldGpu { index: usize, gpu: Gpu },
}

/// CUDA's number for having no device.
const NO_DEVICE: c_int = 100;

/// What helps against an error of CUDA's driver.
fn remedy(code: c_int) -> &'static str {
    match code {
        34 => {
            "libcuda.so.1 is the stub of CUDA's toolkit: put the driver's own first in the library path"
        }
        NO_DEVICE => {
            "see nvidia-smi and CUDA_VISIBLE_DEVICES, and start containers with their GPUs (--gpus all)"
        }
        304 => "see that this user may open /dev/nvidia*",
        802 => "start nvidia-fabricmanager, in the driver's version",
        803 => {
            "the driver's library and its kernel module differ in version: restart the machine after an update, and use \
             the host's library in a container"
        }
        804 => {
            "the driver is too old, and its compatibility library is not for this GPU: update the driver"
        }
        _ => "see nvidia-smi and dmesg; restarting the machine often helps",
    }
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
        Choice::Cuda(index) => working_gpu(index),
        Choice::Auto => Ok(match working_gpu(0) {
            Ok(gpu) => gpu,
            Err(reason) => {
                if matches!(reason, Error::NoDriver { .. }) {
                    tracing::info!("computing on the CPU: {reason}");
                } else {
                    tracing::warn!("computing on the CPU: {reason}");
                }
                Device::Cpu
            }
        }),
    }
}

/// The kind for forward passes: bfloat16 where the device multiplies it fast (a GPU from compute capability 8.0 on), else
/// float32 on a CPU and float16 on a GPU.
pub fn default_kind(device: Device) -> Kind {
    match device {
        Device::Cuda(index) => match usable_gpu(index) {
            Ok(gpu) if gpu.capability < (8, 0) => Kind::Half,
            _ => Kind::BFloat16,
        },
        _ if cpu::has_fast_bf16() => Kind::BFloat16,
        _ => Kind::Float,
    }
}

/// CUDA's driver, whatever else is missing.
pub fn driver() -> Result<&'static Driver, Error> {
    static DRIVER: OnceLock<Result<Driver, Error>> = OnceLock::new();
    DRIVER
        .get_or_init(Driver::load)
        .as_ref()
        .map_err(Clone::clone)
}

/// The GPU, after a first product that came out right.
pub fn working_gpu(index: usize) -> Result<Device, Error> {
    usable_gpu(index)?;
    let device = Device::Cuda(index);
    match keeps_float32(device) {
        Ok(true) => Ok(device),
        Ok(false) => Err(Error::Rounds { index }),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default().to_owned();
            Err(Error::Broken { index, reason })
        }
    }
}

/// Whether products of float32 matrices are those of float32 numbers. libtorch can be told, by its environment alone, to let
/// GPUs round the factors to 11 bits first (TF32), with which a Gram matrix may not even be one.
fn keeps_float32(device: Device) -> Result<bool, TchError> {
    const SIZE: i64 = 256;
    let value = 1.0 + 2f64.powi(-12);
    let factor = Tensor::f_full([SIZE, SIZE], value, (Kind::Float, device))?;
    let product = factor.f_mm(&factor.f_ones_like()?)?;
    // These sums are float32 numbers, every one on the way to them too.
    let right = product.f_eq(value * SIZE as f64)?;
    Ok(right.f_all()?.f_int64_value(&[])? == 1)
}

/// The GPU that CUDA and libtorch count as `index`, if libtorch can compute on it; with libtorch's CUDA part loaded.
pub fn usable_gpu(index: usize) -> Result<&'static Gpu, Error> {
    static GPUS: OnceLock<Result<Vec<Gpu>, Error>> = OnceLock::new();
    static LOADED: OnceLock<Result<(), Error>> = OnceLock::new();
    let gpus = GPUS
        .get_or_init(shown_gpus)
        .as_ref()
        .map_err(Clone::clone)?;
    let count = gpus.len();
    let gpu = gpus.get(index).ok_or(Error::NoSuchGpu { index, count })?;
    if gpu.capability < LEAST_CAPABILITY {
        let gpu = gpu.clone();
        return Err(Error::OldGpu { index, gpu });
    }
    let load = || {
        driver::load_libtorch_cuda()?;
        match Cuda::device_count() {
            0 => Err(Error::NotCounted(count)),
            _ => Ok(()),
        }
    };
    LOADED.get_or_init(load).clone()?;
    Ok(gpu)
}

/// The GPUs that CUDA shows, at least one, with a driver that is new enough.
fn shown_gpus() -> Result<Vec<Gpu>, Error> {
    let driver = driver()?;
    let gpus = driver.gpus()?;
    if gpus.is_empty() {
        return Err(Error::NoGpu);
    }
    match driver::libtorch_cuda_version() {
        // Within one major version drivers run what is newer than they are.
        Some(libtorch) if driver.version.major() < libtorch.major() => {
            let driver = driver.version;
            Err(Error::OldDriver { driver, libtorch })
        }
        _ => Ok(gpus),
    }
}

/// What nobody holds of the memory of `device`; `None` where it is no GPU, or NVML does not show it.
pub fn free_gpu_bytes(device: Device) -> Option<u64> {
    let Device::Cuda(index) = device else {
        return None;
    };
    let gpu = nvml::WatchedGpu::open(&usable_gpu(index).ok()?.uuid).ok()?;
    let used = gpu.read().ok()?.device_bytes;
    Some(gpu.total_bytes.saturating_sub(used))
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
    fn products_keep_float32() {
        let device = select(Choice::Auto).unwrap();
        for device in [Device::Cpu, device] {
            assert!(keeps_float32(device).unwrap());
        }
    }

    #[test]
    fn the_kind_fits_the_device() {
        let kind = default_kind(Device::Cpu);
        assert!(matches!(kind, Kind::BFloat16 | Kind::Float), "{kind:?}");
    }
}
