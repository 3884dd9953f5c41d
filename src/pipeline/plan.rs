//! What a run will do and write, known before any weight is read.

use std::collections::HashSet;
use std::fmt::Write;

use anyhow::Result;
use safetensors::Dtype;

use super::floor::Work;
use crate::checkpoint::TensorSpec;
use crate::cli::settings::Settings;
use crate::device;
use crate::device::rates::Rates;
use crate::fault::InputError;
use crate::model::{Compute, Role};
use crate::pack::{self, RuleOutcome};
use crate::quant::GroupSize;
use crate::quant::gptq::ActOrder;
use crate::report::{human_bytes, human_seconds};
use crate::weights::ModelDir;

/// Most tokens that run through a layer together: enough for full-speed products, few enough for a CPU's caches.
const TOKENS_PER_BATCH: usize = 4096;

/// Share of the free memory that one batch's temporaries may take.
const BATCH_SHARE: u64 = 8;

/// The tensors to write, what loads them, and what the run needs.
pub struct Plan {
    pub specs: Vec<TensorSpec>,
    /// Tensors that no part of the family uses: kept byte for byte.
    pub extras: Vec<String>,
    pub outcomes: Vec<RuleOutcome>,
    pub parameters: u64,
    pub quantized_parameters: u64,
    pub output_bytes: u64,
    pub batch_size: usize,
    /// Peak RAM beyond libtorch's own: activations, and the widest stage's weights and statistics.
    pub working_bytes: u64,
}

impl Plan {
    /// Checks that the checkpoint has what the model needs, that the format can hold it, and that some runtime loads it.
    pub fn new(source: &ModelDir, settings: &Settings, compute: Compute) -> Result<Self> {
        let (model, checkpoint) = (&source.model, &source.checkpoint);
        let format = settings.format;
        if source.quantized.is_some() {
            let path = checkpoint.dir().join("config.json");
            let remedy = "give the original, unquantized model";
            return Err(InputError::new(&path, "the model is quantized already", remedy).into());
        }
        let n_layers = model.config.n_layers;
        let roles: Vec<Role> = model
            .arch
            .stages
            .iter()
            .flat_map(|stage| stage.linears.iter().copied())
            .collect();
        let shapes: Vec<(String, usize, usize)> = roles
            .iter()
            .map(|&role| {
                let (out, inp) = model.linear_shape(role);
                (model.linear_name(0, role), out, inp)
            })
            .collect();
        let request = pack::Request {
            format,
            bits: settings.scheme.bits,
            group_size: settings.scheme.group_size,
            symmetric: settings.scheme.symmetric,
            desc_act: (settings.solver.gptq())
                .is_some_and(|gptq| gptq.act_order == ActOrder::DescAct),
            linears: &shapes,
        };
        pack::refuse(&request)?;

        let mut specs = Vec::new();
        let mut used = HashSet::new();
        let mut parameters = 0;
        let mut quantized_parameters = 0;
        let linears: HashSet<String> = (0..n_layers)
            .flat_map(|layer| {
                roles
                    .iter()
                    .map(move |&role| model.linear_name(layer, role))
            })
            .collect();
        for (name, shape) in model.tensors() {
            source.check(&name, &shape)?;
            let numel = shape.iter().product::<usize>() as u64;
            parameters += numel;
            match name
                .strip_suffix(".weight")
                .filter(|module| linears.contains(*module))
            {
                Some(module) => {
                    quantized_parameters += numel;
                    for spec in format.tensor_specs(shape[0], shape[1], settings.scheme) {
                        specs.push(TensorSpec {
                            name: format!("{module}.{}", spec.suffix),
                            dtype: spec.dtype,
                            shape: spec.shape,
                        });
                    }
                }
                None => specs.push(TensorSpec {
                    name: name.clone(),
                    dtype: Dtype::F16,
                    shape,
                }),
            }
            used.insert(name);
        }
        let extras: Vec<String> = checkpoint
            .names()
            .filter(|name| !used.contains(*name))
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

        let batch_size = settings
            .batch_size
            .unwrap_or_else(|| batch_size(source, settings, compute))
            .min(settings.num_samples);
        Ok(Self {
            outcomes: pack::check(&request),
            working_bytes: working_bytes(source, settings, compute, &roles),
            specs,
            extras,
            parameters,
            quantized_parameters,
            output_bytes,
            batch_size,
        })
    }

    /// The least that the run has to do on `n_windows` windows.
    pub fn work(&self, source: &ModelDir, settings: &Settings, n_windows: usize) -> Work {
        let read = source.checkpoint.total_bytes();
        Work::new(&source.model, settings, n_windows, read, self.output_bytes)
    }

    /// A warning where the run will not fit into the memory that is free now.
    pub fn memory_warning(&self) -> Option<String> {
        let free = device::memory::available_bytes().filter(|&free| free < self.working_bytes)?;
        Some(format!(
            "the run needs about {} of memory, {} are free; lower --num-samples or --seq-len",
            human_bytes(self.working_bytes),
            human_bytes(free)
        ))
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
                    model.arch.model_type,
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
                    compute.device, compute.kind, self.batch_size
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
                "RAM",
                format!(
                    "about {} beyond libtorch's own",
                    human_bytes(self.working_bytes)
                ),
            ),
            (
                "time",
                format!(
                    "at least {}, at the rates that this machine reaches now",
                    human_seconds(
                        self.work(source, settings, settings.num_samples)
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

/// Windows whose temporaries (the stage's input in float32, and its outputs) fit into a share of the free memory.
fn batch_size(source: &ModelDir, settings: &Settings, compute: Compute) -> usize {
    let stages = source.model.arch.stages.iter();
    let per_token = stages.map(|stage| {
        let outputs: usize = stage
            .linears
            .iter()
            .map(|&role| source.model.linear_shape(role).0)
            .sum();
        let inp = source.model.linear_shape(stage.linears[0]).1;
        // The input in float32, twice for its absolute values; outputs and what the mixing step makes of them.
        inp * 8 + 2 * outputs * compute.kind.elt_size_in_bytes()
    });
    let per_token = per_token.max().unwrap_or(1) as u64;
    let free = device::memory::available_bytes().unwrap_or(u64::MAX);
    let tokens = TOKENS_PER_BATCH.min((free / BATCH_SHARE / per_token) as usize);
    (tokens / settings.seq_len).max(1)
}

/// Activations of all windows, plus the largest stage's weights (float and quantized) and Gram matrix with its factor.
fn working_bytes(source: &ModelDir, settings: &Settings, compute: Compute, roles: &[Role]) -> u64 {
    let model = &source.model;
    let tokens = settings.num_samples * settings.seq_len;
    let widest = roles
        .iter()
        .map(|&role| model.linear_shape(role).1)
        .max()
        .unwrap_or(0);
    let activations =
        tokens * (model.config.hidden_size + widest) * compute.kind.elt_size_in_bytes();
    let stage = model
        .arch
        .stages
        .iter()
        .map(|stage| {
            let weights: usize = stage
                .linears
                .iter()
                .map(|&role| model.linear_shape(role))
                .map(|(out, inp)| out * inp)
                .sum();
            let inp = model.linear_shape(stage.linears[0]).1;
            // Two float32 copies, the codes and the copy that runs; the Gram matrix, its damped copy and its factor.
            weights * (4 + 4 + 1 + compute.kind.elt_size_in_bytes()) + inp * inp * 4 * 3
        })
        .max()
        .unwrap_or(0);
    (activations + stage) as u64
}
