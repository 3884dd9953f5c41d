//! GPUs as NVIDIA's management library (NVML) shows them. It counts in an order of its own and does not know
//! `CUDA_VISIBLE_DEVICES`, so the GPU that computes is found by its UUID.

use std::sync::OnceLock;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::Serialize;

/// Memory of a GPU in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// By all processes.
    pub device_bytes: u64,
    /// By this process; `None` where NVML does not see it, as inside many containers.
    pub process_bytes: Option<u64>,
}

/// One GPU, for readings again and again.
pub struct WatchedGpu {
    device: Device<'static>,
    pub name: String,
    /// All of its memory.
    pub total_bytes: u64,
}

impl WatchedGpu {
    /// The GPU, or the part of one, with CUDA's `uuid`.
    ///
    /// # Errors
    /// Why NVML cannot show it.
    pub fn open(uuid: &str) -> Result<Self, String> {
        let nvml = library().map_err(|error| reason(&error))?;
        // As a whole, or as a part of one that is split (MIG).
        let whole = nvml.device_by_uuid(format!("GPU-{uuid}"));
        let part = || nvml.device_by_uuid(format!("MIG-{uuid}"));
        let open = |device: Device<'static>| {
            Ok(Self {
                name: device.name()?,
                total_bytes: device.memory_info()?.total,
                device,
            })
        };
        (whole
            .or_else(|error| part().map_err(|_| error))
            .and_then(open))
        .map_err(|error| format!("GPU {uuid}: {}", reason(&error)))
    }

    /// What is in use now.
    pub fn read(&self) -> Result<Usage, NvmlError> {
        let device_bytes = self.device.memory_info()?.used;
        let processes = match self.device.running_compute_processes() {
            Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Vec::new(),
            processes => processes?,
        };
        let own = processes
            .iter()
            .find(|process| process.pid == std::process::id());
        Ok(Usage {
            device_bytes,
            process_bytes: own.and_then(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            }),
        })
    }
}

/// What NVML shows.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// The driver's own version, such as 580.82.07.
    pub driver: String,
    pub gpus: Vec<Row>,
}

/// One GPU; what it does not tell is `None`.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// NVML's number of it.
    pub index: u32,
    pub name: Option<String>,
    /// With `GPU-` before it.
    pub uuid: Option<String>,
    pub pci_bus_id: Option<String>,
    pub capability: Option<(i32, i32)>,
    pub used_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    /// Why its memory is not known.
    pub error: Option<String>,
}

/// All GPUs that NVML shows.
///
/// # Errors
/// Why it shows nothing.
pub fn table() -> Result<Table, String> {
    let table = || {
        let nvml = library()?;
        let indices = 0..nvml.device_count()?;
        Ok(Table {
            driver: nvml.sys_driver_version()?,
            gpus: indices.map(|index| row(nvml, index)).collect(),
        })
    };
    table().map_err(|error| reason(&error))
}

/// What went wrong, in the words of who says so.
fn reason(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(error) => error.to_string(),
        error => error.to_string(),
    }
}

fn row(nvml: &Nvml, index: u32) -> Row {
    let device = nvml.device_by_index(index);
    let memory = device.as_ref().map_err(ToString::to_string);
    let memory = memory.and_then(|device| device.memory_info().map_err(|error| error.to_string()));
    let device = device.ok();
    let device = device.as_ref();
    let capability = device.and_then(|device| device.cuda_compute_capability().ok());
    let pci = device.and_then(|device| device.pci_info().ok());
    Row {
        index,
        name: device.and_then(|device| device.name().ok()),
        uuid: device.and_then(|device| device.uuid().ok()),
        pci_bus_id: pci.map(|pci| pci.bus_id),
        capability: capability.map(|capability| (capability.major, capability.minor)),
        used_bytes: memory.as_ref().ok().map(|memory| memory.used),
        total_bytes: memory.as_ref().ok().map(|memory| memory.total),
        error: memory.err(),
    }
}

/// NVML, loaded and started once, for good: it is cheap to ask, but not to start.
fn library() -> Result<&'static Nvml, NvmlError> {
    static LIBRARY: OnceLock<Nvml> = OnceLock::new();
    match LIBRARY.get() {
        Some(nvml) => Ok(nvml),
        None => Nvml::init().map(|nvml| LIBRARY.get_or_init(|| nvml)),
    }
}
