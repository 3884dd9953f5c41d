//! What a run will do and write, known before any weight is read.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use safetensors::Dtype;
use tch::Device;

use super::floor::Work;
use super::memory::{Budget, MemoryPlan};
use super::tower::Tower;
use crate::checkpoint::{self, TensorSpec};
use crate::cli::settings::Settings;
use crate::device;
use crate::device::rates::Rates;
use crate::fault::{InputError, ResourceError};
use crate::model::{Compute, LayerPlan, LinearPlan, Stored};
use crate::pack::{self, Family, RuleOutcome};
use crate::quant::GroupSize;
use crate::quant::gptq::ActOrder;
use crate::report::{human_bytes, human_seconds};
use crate::weights::ModelDir;

/// Share of the free memory that a run takes where nothing else is asked for.
pub const MEMORY_SHARE: f64 = 0.75;

/// Images that layers attend to, before the calibration data are read: as many as are built in.
pub const EXPECTED_IMAGES: usize = 24;

/// The tensors to write, what loads them, and what the run needs.
pub struct Plan {
    pub specs: Vec<TensorSpec>,
    /// Tensors that no part of the family uses, or that are used as they are: kept byte for byte.
    pub extras: Vec<String>,
    pub outcomes: Vec<RuleOutcome>,
    pub parameters: u64,
    pub quantized_parameters: u64,
    pub output_bytes: u64,
    pub memory: MemoryPlan,
    /// What is quantized of what the model sees with.
    pub tower: Tower,
}

impl Plan {
    /// Checks that the checkpoint has what the model needs, that the format can hold it, and that some runtime loads it. There are
    /// so many images for layers to attend to.
    pub fn new(
        source: &ModelDir,
        settings: &Settings,
        compute: Compute,
        n_images: usize,
    ) -> Result<Self> {
        let (model, checkpoint) = (&source.model, &source.checkpoint);
        let format = settings.format;
        if source.quantized.is_some() {
            let path = checkpoint.dir().join("config.json");
            let remedy = "give the original, unquantized model";
            return Err(InputError::new(&path, "the model is quantized already", remedy).into());
        }
        let linears = model.layers.iter().flat_map(LayerPlan::quantized);
        let linears: Vec<&LinearPlan> = linears.collect();
        let tower = Tower::new(source, settings)?;
        let in_tower = tower.linears.iter();
        let shapes: Vec<(String, usize, usize)> = linears
            .iter()
            .map(|linear| (linear.name.clone(), linear.out_features, linear.in_features))
            .chain(in_tower.map(|(name, [out, inp])| (name.clone(), *out, *inp)))
            .collect();
        let request = pack::Request {
            format,
            bits: settings.scheme.bits,
            group_size: settings.scheme.group_size,
            symmetric: settings.scheme.symmetric,
            desc_act: (settings.solver.gptq())
                .is_some_and(|gptq| gptq.act_order == ActOrder::DescAct),
            family: Family::find(model.model_type()),
            torn: model.torn(),
            tower: !tower.linears.is_empty(),
            linears: &shapes,
        };
        pack::refuse(&request)?;

        let mut specs = Vec::new();
        let mut used = HashSet::new();
        let mut parameters = 0;
        let mut quantized_parameters = 0;
        let float16 = |name, shape| TensorSpec {
            name,
            dtype: Dtype::F16,
            shape,
        };
        let mut sources = HashSet::new();
        for linear in &linears {
            quantized_parameters += linear.shape().iter().product::<usize>() as u64;
        }
        // Those of the tower among them.
        for (name, out, inp) in &shapes {
            let packed = format.tensor_specs(*out, *inp, settings.scheme);
            specs.extend(packed.into_iter().map(|spec| TensorSpec {
                name: format!("{name}.{}", spec.suffix),
                dtype: spec.dtype,
                shape: spec.shape,
            }));
        }
        for linear in model.layers.iter().flat_map(LayerPlan::linears) {
            let [out, inp] = linear.shape();
            if linear.in_float {
                let shape = match linear.stored {
                    Stored::Transposed => vec![inp, out],
                    Stored::Own | Stored::Stacked(_) => vec![out, inp],
                };
                specs.push(float16(linear.weight_name(), shape));
            }
            sources.extend(linear.weight_sources().into_iter().map(|source| source.0));
            if let Some((name, _)) = linear.bias_source() {
                sources.insert(name);
                specs.push(float16(linear.bias_name(), vec![out]));
            }
        }
        let kept = model.layers.iter().flat_map(|layer| &layer.kept);
        let kept: HashSet<&str> = kept.map(|kept| kept.1.as_str()).collect();
        for (name, shape) in model.tensors() {
            source.check(&name, &shape)?;
            if kept.contains(name.as_str()) {
                continue;
            }
            parameters += shape.iter().product::<usize>() as u64;
            if !sources.contains(&name) {
                specs.push(float16(name.clone(), shape));
            }
            used.insert(name);
        }
        let extras: Vec<String> = checkpoint
            .names()
            .filter(|name| !used.contains(*name) && !tower.has(name))
            .map(str::to_owned)
            .collect();
        for name in &extras {
            if let Some(info) = checkpoint.info(name) {
                specs.push(TensorSpec {
                    name: name.clone(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                });
            }
        }
        let output_bytes = specs
            .iter()
            .map(|spec| crate::tensor::byte_len(spec.dtype, &spec.shape).unwrap_or(0) as u64)
            .sum();

        // The rest of a model that sees is, as good as all of it, what it sees with.
        let elements = extras.iter().filter_map(|name| checkpoint.info(name));
        let elements = elements.map(|info| info.shape.iter().product::<usize>());
        let in_tower = tower.linears.iter().map(|(_, [out, inp])| out * inp);
        let eyes = (model.vision.as_ref()).map_or(0, |_| {
            elements.chain(in_tower).sum::<usize>() * compute.kind.elt_size_in_bytes()
        });
        let share =
            |free: Option<u64>| free.map_or(u64::MAX, |free| (free as f64 * MEMORY_SHARE) as u64);
        let host = || share(device::memory::room().map(|room| room.free_bytes));
        let budget = Budget {
            host: settings.memory.unwrap_or_else(host),
            gpu: (settings.vram).unwrap_or_else(|| share(device::free_gpu_bytes(compute.device))),
        };
        Ok(Self {
            outcomes: pack::check(&request),
            memory: MemoryPlan::new(model, settings, compute, [eyes, n_images], budget)?,
            specs,
            extras,
            parameters,
            quantized_parameters,
            output_bytes,
            tower,
        })
    }

    /// Fails where the file system of `output` has less room than the result takes. What an unfinished run left there counts as free.
    pub fn check_disk(&self, output: &Path) -> Result<(), ResourceError> {
        let Some((directory, free)) = device::memory::free_disk_bytes(output) else {
            return Ok(());
        };
        let free = free + checkpoint::unfinished_bytes(output);
        if free >= self.output_bytes {
            return Ok(());
        }
        Err(ResourceError {
            problem: format!(
                "{}: the result takes {}, {} are free",
                directory.display(),
                human_bytes(self.output_bytes),
                human_bytes(free)
            ),
            remedy: "free some, or choose another --output",
        })
    }

    /// The least that the run has to do on `n_windows` windows, behind the layers that are finished.
    pub fn work(
        &self,
        source: &ModelDir,
        settings: &Settings,
        n_windows: usize,
        n_finished: usize,
    ) -> Work {
        let bytes = [source.checkpoint.total_bytes(), self.output_bytes];
        Work::new(&source.model, settings, n_windows, n_finished, bytes)
    }

    /// What the activations take, for the place where they wait; the other says nothing of them.
    fn activations(&self, on_gpu: bool) -> String {
        let memory = &self.memory;
        if memory.resident != on_gpu {
            return String::new();
        }
        let twice = if memory.recompute {
            ", the MLP's made twice to fit"
        } else {
            ""
        };
        let slice = memory.slice;
        let slice = slice.map_or(String::new(), |slice| format!(", {slice} tokens at a time"));
        let bytes = human_bytes(memory.activations);
        format!("activations {bytes}{twice}{slice}, ")
    }

    fn ram(&self, compute: Compute) -> String {
        let batch = match compute.device {
            Device::Cpu => format!(", batch {}", human_bytes(self.memory.batch)),
            _ => String::new(),
        };
        format!(
            "about {} beyond libtorch's own: {}widest stage {}{batch}",
            human_bytes(self.memory.on_host(compute.device)),
            self.activations(false),
            human_bytes(self.memory.stage)
        )
    }

    fn vram(&self, compute: Compute) -> String {
        match compute.device {
            Device::Cpu => "none: the CPU computes".to_owned(),
            _ => format!(
                "about {} beyond libtorch's own: {}widest stage {}, batch {}; {} free",
                human_bytes(self.memory.on_gpu(compute.device)),
                self.activations(true),
                human_bytes(self.memory.stage),
                human_bytes(self.memory.batch),
                device::free_gpu_bytes(compute.device).map_or("unknown".to_owned(), human_bytes)
            ),
        }
    }

    /// What `--dry-run` prints.
    pub fn render(
        &self,
        source: &ModelDir,
        settings: &Settings,
        compute: Compute,
        rates: &Rates,
    ) -> String {
        let mut text = String::new();
        let group_size = match settings.scheme.group_size {
            GroupSize::Columns(columns) => columns.to_string(),
            GroupSize::WholeRow => "the whole row".to_owned(),
        };
        let model = &source.model;
        let lines = [
            (
                "model",
                format!(
                    "{} ({}, {} layers, {:.1} M parameters)",
                    settings.model.display(),
                    model.model_type(),
                    model.config.n_layers,
                    self.parameters as f64 / 1e6
                ),
            ),
            (
                "method",
                format!(
                    "{} {} bit, group size {group_size}, {}",
                    settings.solver,
                    settings.scheme.bits,
                    if settings.scheme.symmetric {
                        "symmetric"
                    } else {
                        "asymmetric"
                    }
                ),
            ),
            (
                "device",
                format!(
                    "{:?}, forward pass in {:?}, {} windows a batch",
                    compute.device, compute.kind, self.memory.batch_size
                ),
            ),
            (
                "calibration",
                format!(
                    "{} windows of {} tokens",
                    settings.num_samples, settings.seq_len
                ),
            ),
            (
                "output",
                format!(
                    "{}: {} ({} before)",
                    settings.output.display(),
                    human_bytes(self.output_bytes),
                    human_bytes(source.checkpoint.total_bytes())
                ),
            ),
            (
                "disk",
                match device::memory::free_disk_bytes(&settings.output) {
                    Some((_, free)) => format!("{} free", human_bytes(free)),
                    None => "unknown".to_owned(),
                },
            ),
            ("RAM", self.ram(compute)),
            ("VRAM", self.vram(compute)),
            (
                "time",
                format!(
                    "at least {}, at the rates that this machine reaches now",
                    human_seconds(
                        self.work(source, settings, settings.num_samples, 0)
                            .seconds(rates)
                    )
                ),
            ),
        ];
        for (label, value) in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{label:<12} {value}");
        }
        text.push('\n');
        text.push_str(&pack::render(&self.outcomes));
        text
    }
}
