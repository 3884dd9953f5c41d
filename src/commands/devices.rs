//! `nibble devices`.

use anyhow::Result;
use serde::Serialize;
use tch::{Device, Kind};

use crate::cli::DevicesArgs;
use crate::device::driver::{self, Gpu};
use crate::device::{self, cpu, memory, nvml};
use crate::kernels;
use crate::pipeline::MEMORY_SHARE;
use crate::report::human_bytes;
use crate::tensor::LIBTORCH_VERSION;

/// What can compute here, and why the rest cannot.
#[derive(Serialize)]
struct Devices {
    cpu: Cpu,
    libtorch: Libtorch,
    cuda: Cuda,
    nvml: Nvml,
    /// What a run takes where nothing is asked for.
    auto: Auto,
}

#[derive(Serialize)]
struct Cpu {
    name: Option<String>,
    /// For this process.
    cores: usize,
    /// The instruction set of the kernels.
    kernels: &'static str,
    fast_bfloat16: bool,
    free_bytes: Option<u64>,
    /// The machine's memory, or what a control group leaves of it.
    limit_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Libtorch {
    version: &'static str,
    /// Where its libraries were loaded from.
    directory: Option<String>,
    /// The version of CUDA that it was built for.
    cuda: Option<String>,
}

#[derive(Serialize)]
struct Cuda {
    /// The newest CUDA that the driver runs.
    driver: Option<String>,
    /// In CUDA's order, as CUDA_VISIBLE_DEVICES leaves them.
    gpus: Vec<Gpu>,
    /// Why the first one cannot be used.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Nvml {
    /// Why it shows nothing.
    problem: Option<String>,
    #[serde(flatten)]
    table: Option<nvml::Table>,
}

#[derive(Serialize)]
struct Auto {
    device: String,
    dtype: &'static str,
}

/// Prints what can compute on this machine, and why the rest cannot.
pub fn devices(args: &DevicesArgs) -> Result<()> {
    let devices = Devices::find()?;
    if args.json {
        let object = serde_json::to_string(&devices)?;
        return Ok(super::print(&format!("{object}\n"))?);
    }
    Ok(super::print(&devices.render())?)
}

impl Devices {
    fn find() -> Result<Self> {
        let room = memory::room();
        let problem = device::working_gpu(0).err();
        let auto = match problem {
            None => Device::Cuda(0),
            Some(_) => Device::Cpu,
        };
        let driver = device::driver().ok();
        let (table, nvml_problem) = match nvml::table() {
            Ok(table) => (Some(table), None),
            Err(problem) => (None, Some(problem)),
        };
        Ok(Self {
            cpu: Cpu {
                name: cpu::model_name(),
                cores: cpu::n_cores(),
                kernels: kernels::choose()?.name(),
                fast_bfloat16: device::default_kind(Device::Cpu) == Kind::BFloat16,
                free_bytes: room.map(|room| room.free_bytes),
                limit_bytes: room.map(|room| room.limit_bytes),
            },
            libtorch: Libtorch {
                version: LIBTORCH_VERSION,
                directory: libtorch_directory(),
                cuda: driver::libtorch_cuda_version().map(|version| version.to_string()),
            },
            cuda: Cuda {
                driver: driver.map(|driver| driver.version.to_string()),
                gpus: driver.map_or(Vec::new(), |driver| driver.gpus().unwrap_or_default()),
                problem: problem.map(|problem| problem.to_string()),
            },
            nvml: Nvml {
                problem: nvml_problem,
                table,
            },
            auto: Auto {
                device: match auto {
                    Device::Cuda(index) => format!("cuda:{index}"),
                    _ => "cpu".to_owned(),
                },
                dtype: match device::default_kind(auto) {
                    Kind::BFloat16 => "bfloat16",
                    Kind::Half => "float16",
                    _ => "float32",
                },
            },
        })
    }

    fn render(&self) -> String {
        let Self {
            cpu,
            libtorch,
            cuda,
            nvml,
            auto,
        } = self;
        let known = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), human_bytes);
        let share = |free: u64| human_bytes((free as f64 * MEMORY_SHARE) as u64);
        let mut lines = vec![
            (
                "CPU",
                format!(
                    "{}, {} cores for this process, kernels for {}, bfloat16 is {} than float32",
                    cpu.name.as_deref().unwrap_or("unknown"),
                    cpu.cores,
                    cpu.kernels,
                    if cpu.fast_bfloat16 {
                        "faster"
                    } else {
                        "not faster"
                    }
                ),
            ),
            (
                "RAM",
                format!(
                    "{} free of {}; a run may take {} of it, or what --memory says",
                    known(cpu.free_bytes),
                    known(cpu.limit_bytes),
                    cpu.free_bytes.map_or("all".to_owned(), share)
                ),
            ),
            (
                "libtorch",
                format!(
                    "{} from {}, built for {}",
                    libtorch.version,
                    libtorch.directory.as_deref().unwrap_or("an unknown place"),
                    match &libtorch.cuda {
                        Some(version) => format!("CUDA {version}"),
                        None => "the CPU alone".to_owned(),
                    }
                ),
            ),
            (
                "CUDA",
                match &cuda.problem {
                    None => "usable".to_owned(),
                    Some(problem) => format!("not used: {problem}"),
                },
            ),
        ];
        if let Some(cuda) = &cuda.driver {
            let version = nvml
                .table
                .as_ref()
                .map(|table| format!("{}, ", table.driver));
            let version = version.unwrap_or_default();
            lines.push(("driver", format!("{version}runs CUDA {cuda}")));
        }
        if let Some(problem) = &nvml.problem {
            lines.push(("NVML", format!("shows nothing: {problem}")));
        }
        lines.extend(self.gpus().into_iter().map(|gpu| ("GPU", gpu)));
        lines.push(("auto takes", format!("{}, in {}", auto.device, auto.dtype)));
        let lines = lines.into_iter();
        let lines: Vec<String> = lines
            .map(|(label, value)| format!("{label:<12} {value}"))
            .collect();
        lines.join("\n") + "\n"
    }

    /// One line a GPU: those that CUDA shows, then those that only NVML does.
    fn gpus(&self) -> Vec<String> {
        let rows = self.nvml.table.iter().flat_map(|table| &table.gpus);
        let of = |uuid: &str| {
            let mut rows = rows.clone();
            rows.find(|row| row.uuid.as_deref().is_some_and(|full| full.ends_with(uuid)))
        };
        let shown = self.cuda.gpus.iter().enumerate().map(|(index, gpu)| {
            let what = format!(
                "cuda:{index}, {}, compute capability {}.{}",
                gpu.name, gpu.capability.0, gpu.capability.1
            );
            match of(&gpu.uuid) {
                Some(row) => format!("{what}, {}", numbers(row)),
                None => format!("{what}, {}, not shown by NVML", gpu.uuid),
            }
        });
        let hidden = rows.clone().filter(|row| {
            let uuid = row.uuid.as_deref().unwrap_or_default();
            !(self.cuda.gpus.iter()).any(|gpu| uuid.ends_with(&gpu.uuid))
        });
        let hidden = hidden.map(|row| {
            let capability = row.capability.map_or(String::new(), |(major, minor)| {
                format!(", compute capability {major}.{minor}")
            });
            let name = row.name.as_deref().unwrap_or("unknown");
            format!("not shown by CUDA, {name}{capability}, {}", numbers(row))
        });
        shown.chain(hidden).collect()
    }
}

/// What NVML alone tells of a GPU.
fn numbers(row: &nvml::Row) -> String {
    let known = |text: &Option<String>| text.clone().unwrap_or("unknown".to_owned());
    let memory = match (row.used_bytes, row.total_bytes, &row.error) {
        (Some(used), Some(total), _) => {
            format!("{} of {} in use", human_bytes(used), human_bytes(total))
        }
        (_, _, error) => format!("memory unknown: {}", known(error)),
    };
    format!(
        "{}, PCI {}, NVML's {}, {memory}",
        known(&row.uuid),
        known(&row.pci_bus_id),
        row.index
    )
}

/// Where this process has libtorch from.
fn libtorch_directory() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps
        .lines()
        .find_map(|line| line.strip_suffix("/libtorch_cpu.so"))?;
    Some(path[path.find('/')?..].to_owned())
}
