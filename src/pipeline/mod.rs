//! The run: from a model directory to a quantized one. The only module that knows all the others.
//!
//! For each layer and each stage of it: the statistics of the stage's input over all calibration windows, the stage's
//! weights quantized from them and written, the quantized linears run once to make the next stage's input. What must be in
//! memory is one stage's weights and statistics, and the activations of all windows between two stages.

mod activations;
mod batch;
mod describe;
mod floor;
mod fold;
mod job;
mod layer;
mod means;
mod memory;
mod outbox;
mod plan;
mod resume;
mod selection;
mod solve;
mod tower;

use std::time::{Duration, Instant};

use anyhow::Result;
use regex::Regex;
use tch::Device;

pub use plan::{EXPECTED_IMAGES, MEMORY_SHARE, Plan};
pub use selection::open;

use job::{Job, Tensors};
use means::{Means, attempt_with};

use crate::calibration::{self, ChatTemplate, Reading, Tokenizer};
use crate::checkpoint::Writer;
use crate::cli::settings::{Leftover, Settings};
use crate::device;
use crate::device::monitor::Monitor;
use crate::device::rates::Rates;
use crate::model::Compute;
use crate::pack::Verdict;
use crate::quant::GroupSize;
use crate::report::progress;
use crate::report::{CalibrationReport, ModelReport, Report, SettingsReport, human_bytes};
use crate::sight;

/// Seconds of one part of the work.
#[derive(Default)]
pub struct Timer(Duration);

impl Timer {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.0 += start.elapsed();
        result
    }

    fn seconds(&self) -> f64 {
        self.0.as_secs_f64()
    }
}

/// Where the time goes.
#[derive(Default)]
pub struct Times {
    calibration: Timer,
    images: Timer,
    load: Timer,
    statistics: Timer,
    solve: Timer,
    forward: Timer,
    write: Timer,
}

/// Where and in what the model computes, for `choice` on this machine. Sets the number of threads on the way.
pub fn compute(choice: &crate::cli::settings::ComputeChoice) -> Result<Compute> {
    device::use_threads(choice.threads)?;
    let device = device::select(choice.device)?;
    let kind = choice.kind.unwrap_or_else(|| device::default_kind(device));
    Ok(Compute { device, kind })
}

/// Watches memory from here on: this process's, and that of the GPU that computes.
fn start_monitor(settings: &Settings, compute: Compute, start: Instant) -> Result<Monitor> {
    let gpu = match compute.device {
        Device::Cuda(index) => Some(&device::usable_gpu(index)?.uuid[..]),
        _ => None,
    };
    let monitor = Monitor::start(gpu, settings.memory_interval, start);
    monitor.enter("plan");
    Ok(monitor)
}

/// Quantizes the model of `settings` into its output directory, or goes on with what an interrupted run of the same settings left.
///
/// # Errors
/// All that [`crate::fault::Fault`] tells apart. Nothing is left in the output directory's place; beside it waits what can be gone
/// on with, where a layer at least is finished.
pub fn quantize(settings: &Settings, command: Vec<String>, start: Instant) -> Result<Report> {
    let compute = compute(&settings.compute)?;
    let monitor = start_monitor(settings, compute, start)?;
    let mut source = selection::open(settings)?;
    let mut expected_images = EXPECTED_IMAGES;
    let mut plan = Plan::new(&source, settings, compute, expected_images)?;
    plan.check_disk(&settings.output)?;
    let mut warnings = warn_of(&plan);
    let mut times = Times::default();
    monitor.enter("the machine's rates");
    let rates = Rates::measure(compute.device, compute.kind)?;
    monitor.enter("calibration data");
    let tokenizer = Tokenizer::open(&settings.model)?;
    let template = chat_template(settings, &mut warnings)?;
    let (data, windows) = times.calibration.time(|| -> Result<_> {
        let data = sight::load(settings.calib_data.as_deref(), &source)?;
        let reading = Reading {
            tokenizer: &tokenizer,
            template: template.as_ref(),
            prompts: data.processor.as_ref().map(|prompts| prompts as _),
        };
        let windows = calibration::windows(
            &data.documents,
            &reading,
            settings.seq_len,
            settings.num_samples,
            settings.seed,
        )?;
        Ok((data, windows))
    })?;
    for note in data.notes.into_iter().chain(sight::left_out(&windows)) {
        tracing::warn!("{note}");
        warnings.push(note);
    }
    if source.model.layers.iter().any(|layer| layer.config.looks) {
        let n_images = sight::n_distinct_images(&windows);
        if n_images == 0 {
            let warning = selection::leave_unseen_in_float(&mut source, &plan.tower)?;
            tracing::warn!("{warning}");
            warnings.push(warning);
        }
        expected_images = n_images;
        plan = Plan::new(&source, settings, compute, n_images)?;
        plan.check_disk(&settings.output)?;
    }
    if windows.ids.len() < settings.num_samples {
        let warning = format!(
            "the calibration text holds {} windows of {} tokens, {} were asked for; give more text with --calib-data",
            windows.ids.len(),
            settings.seq_len,
            settings.num_samples
        );
        tracing::warn!("{warning}");
        warnings.push(warning);
    }

    tracing::info!(
        "{} {} bit, {} layers, {} windows of {} tokens, on {:?} in {:?}",
        settings.solver,
        settings.scheme.bits,
        source.model.config.n_layers,
        windows.ids.len(),
        settings.seq_len,
        compute.device,
        compute.kind
    );
    let asked = settings_report(settings);
    let identity = resume::identity(&source, settings, &asked, &windows)?;
    if settings.leftover == Leftover::Discard {
        // Once: what an attempt finishes, the next one goes on with.
        Writer::remove_unfinished(&settings.output, settings.overwrite)?;
    }
    let means = Means {
        kind: compute.kind,
        vram: None,
    };
    let mut first = Some(plan);
    let is_asked = settings.compute.kind.is_some();
    let (compute, plan, (writer, tensors)) = attempt_with(means, is_asked, |means, planned| {
        let compute = Compute {
            kind: means.kind,
            ..compute
        };
        let plan = if let Some(plan) = first.take() {
            plan
        } else {
            let settings = settings.with_vram(means.vram.or(settings.vram));
            Plan::new(&source, &settings, compute, expected_images)?
        };
        *planned = Some(plan.memory.on_gpu(compute.device));
        let job = Job {
            settings,
            source: &source,
            compute,
            monitor: &monitor,
            windows: &windows,
            images: data.processor.as_ref(),
            identity: &identity,
        };
        let made = job.make(&plan, &mut times)?;
        Ok((compute, plan, made))
    })?;
    let Tensors {
        tower,
        linears,
        written_beside,
        resumed_layers,
    } = tensors;
    warnings.extend(starved_experts(&linears));
    monitor.enter("last files");
    describe::write_config(&writer, &source, settings, &plan.tower)?;
    let sidecars = writer.copy_sidecars(&settings.model)?;
    tracing::debug!("copied {}", sidecars.join(", "));

    let seconds = start.elapsed().as_secs_f64();
    // Before the rates are measured again, which would need more than many a run.
    let memory = monitor.finish();
    let after = Rates::measure(compute.device, compute.kind)?;
    let rates = if compute.kind == means.kind {
        rates.better(after)
    } else {
        after
    };
    let work = plan.work(&source, settings, windows.ids.len(), resumed_layers);
    if let Some(note) = &memory.note {
        tracing::warn!("{note}");
        warnings.push(note.clone());
    }
    let report = Report {
        nibble: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch: crate::tensor::LIBTORCH_VERSION.to_owned(),
        command,
        model: ModelReport {
            directory: settings.model.display().to_string(),
            model_type: source.model.model_type().to_owned(),
            layers: source.model.config.n_layers,
            parameters: plan.parameters,
            quantized_parameters: plan.quantized_parameters,
        },
        settings: asked,
        calibration: CalibrationReport {
            source: settings
                .calib_data
                .as_ref()
                .map_or("built-in".to_owned(), |path| path.display().to_string()),
            documents: data.documents.len(),
            windows: windows.ids.len(),
            windows_requested: settings.num_samples,
            seq_len: settings.seq_len,
            tokens: windows.ids.len() * settings.seq_len,
            images: windows.images.iter().map(Vec::len).sum(),
            image_tokens: sight::n_image_tokens(&windows),
            bos: tokenizer.bos(),
        },
        device: format!("{:?}", compute.device),
        compute_dtype: format!("{:?}", compute.kind),
        batch_size: plan.memory.batch_size,
        recompute: plan.memory.recompute,
        slice: plan.memory.slice,
        resumed_layers,
        linears,
        tower,
        warnings,
        seconds,
        phases: work.phases(&rates, &times, written_beside, seconds),
        rates,
        input_bytes: source.checkpoint.total_bytes(),
        output_bytes: writer.total_bytes(),
        memory,
    };
    writer.write_file("quantization_report.log", report.to_text().as_bytes())?;
    writer.write_file(
        "quantization_report.json",
        &serde_json::to_vec_pretty(&report)?,
    )?;
    let output = writer.finish()?;
    tracing::info!(
        "wrote {} ({}) in {:.1} s, {}",
        output.display(),
        human_bytes(report.output_bytes),
        report.seconds,
        progress::peaks(&report.memory)
    );
    Ok(report)
}

/// The model's chat template, where it has one. One that cannot be used is no reason not to quantize: conversations are
/// transcripts then, and the log and the report say so.
fn chat_template(settings: &Settings, warnings: &mut Vec<String>) -> Result<Option<ChatTemplate>> {
    match ChatTemplate::open(&settings.model) {
        Err(error @ calibration::Error::Template { .. }) => {
            let warning = format!("conversations are calibrated on as plain transcripts: {error}");
            tracing::warn!("{warning}");
            warnings.push(warning);
            Ok(None)
        }
        template => Ok(template?),
    }
}

/// Logs and returns what speaks against the plan: the runtimes that refuse the result.
fn warn_of(plan: &Plan) -> Vec<String> {
    let refused = plan
        .outcomes
        .iter()
        .filter_map(|outcome| match &outcome.verdict {
            Verdict::Refuses(reason) => Some(format!(
                "{} will not load the result: {reason}",
                outcome.runtime
            )),
            Verdict::Slow(_) | Verdict::Loads => None,
        });
    refused
        .inspect(|warning| tracing::warn!("{warning}"))
        .collect()
}

/// Names the experts that fewer calibration tokens were routed to than their linears have columns.
fn starved_experts(linears: &[crate::report::LinearReport]) -> Option<String> {
    let starved = linears.iter().filter_map(|linear| {
        let routed = linear.routed_tokens?;
        let name = format!("{} ({routed} tokens)", linear.name);
        (routed < linear.in_features).then_some(name)
    });
    let starved: Vec<String> = starved.collect();
    if starved.is_empty() {
        return None;
    }
    let warning = format!(
        "{} linears of experts saw fewer tokens than they have columns and were calibrated on others' too; more text or \
         --moe-all-tokens may help: {}",
        starved.len(),
        starved.join(", ")
    );
    tracing::debug!("{warning}");
    Some(warning)
}

fn settings_report(settings: &Settings) -> SettingsReport {
    let gptq = settings.solver.gptq();
    let texts = |patterns: &[Regex]| patterns.iter().map(ToString::to_string).collect();
    SettingsReport {
        method: settings.solver.to_string(),
        format: format!("{:?}", settings.format),
        bits: settings.scheme.bits,
        group_size: match settings.scheme.group_size {
            GroupSize::Columns(columns) => columns as i64,
            GroupSize::WholeRow => -1,
        },
        symmetric: settings.scheme.symmetric,
        act_order: gptq.map(|gptq| format!("{:?}", gptq.act_order)),
        damp_percent: gptq.map(|gptq| gptq.damp),
        ignore: texts(&settings.selection.ignore),
        only: texts(&settings.selection.only),
        seed: settings.seed,
    }
}
