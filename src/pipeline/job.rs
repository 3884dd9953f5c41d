//! The tensors of the output: what is outside the layers, then layer by layer.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::activations::Activations;
use super::layer::LayerRun;
use super::outbox::Outbox;
use super::resume::{self, Finished, Written};
use super::tower::AsWritten;
use super::{Plan, Times};
use crate::calibration::Windows;
use crate::checkpoint::Writer;
use crate::cli::settings::Settings;
use crate::device::monitor::Monitor;
use crate::fault::{Fault, InputError};
use crate::images::Processor;
use crate::model::Compute;
use crate::report::progress::Progress;
use crate::report::{LinearReport, TowerReport};
use crate::sight;
use crate::weights::ModelDir;

/// All that a run starts from.
pub struct Job<'a> {
    pub settings: &'a Settings,
    pub source: &'a ModelDir,
    pub compute: Compute,
    pub monitor: &'a Monitor,
    pub windows: &'a Windows,
    /// Prepares their images, where the model sees.
    pub images: Option<&'a Processor>,
    /// What sets the run apart from others.
    pub identity: &'a Map<String, Value>,
}

/// What became of the model's tensors, which are all written.
pub struct Tensors {
    pub tower: Option<TowerReport>,
    pub linears: Vec<LinearReport>,
    /// What the writing thread took.
    pub written_beside: Duration,
    /// Layers that were finished before.
    pub resumed_layers: usize,
}

impl Job<'_> {
    /// Writes all tensors, but for those of layers that an interrupted run had finished.
    pub fn make(&self, plan: &Plan, times: &mut Times) -> Result<(Writer, Tensors)> {
        let (writer, finished) = resume::open(self.settings, plan, self.identity)?;
        let tensors = self.write(plan, &writer, finished, times);
        let tensors = tensors.inspect_err(|error| {
            if Fault::of(error) == Fault::Input {
                // It will be another model that is tried next.
                writer.discard();
            } else if writer.is_kept() {
                tracing::warn!(
                    "{} keeps the layers that are finished: the same command goes on behind them",
                    writer.partial().display()
                );
            }
        })?;
        Ok((writer, tensors))
    }

    fn write(
        &self,
        plan: &Plan,
        writer: &Writer,
        finished: Vec<Finished>,
        times: &mut Times,
    ) -> Result<Tensors> {
        let resumed_layers = finished.len();
        let tower = if let Some(first) = finished.first() {
            // What is outside the layers was written before the first.
            first.tower.clone()
        } else {
            self.monitor.enter("embeddings and head");
            times.write.time(|| -> Result<_> {
                write_outside_layers(writer, self.source, plan)?;
                plan.tower.write(writer, self.source, self.settings)
            })?
        };
        let (linears, written_beside) = Outbox::with(writer, self.settings.format, |outbox| {
            self.write_layers(outbox, plan, writer, finished, tower.as_ref(), times)
        })?;
        Ok(Tensors {
            tower,
            linears,
            written_beside,
            resumed_layers,
        })
    }

    /// Embeds the windows and takes them through all layers: those that are `finished` as they were written.
    fn write_layers(
        &self,
        outbox: &Outbox,
        plan: &Plan,
        writer: &Writer,
        finished: Vec<Finished>,
        tower: Option<&TowerReport>,
        times: &mut Times,
    ) -> Result<Vec<LinearReport>> {
        let model = &self.source.model;
        let (n_layers, n_finished) = (model.config.n_layers, finished.len());
        let mut reports: Vec<LinearReport> = finished
            .into_iter()
            .flat_map(|layer| layer.linears)
            .collect();
        if n_finished > 0 {
            tracing::info!(
                "going on with {}: {n_finished} of {n_layers} layers are finished",
                writer.partial().display()
            );
        }
        if n_finished == n_layers {
            return Ok(reports);
        }
        let mut activations = self.embed(plan, times)?;
        let n_stages = model.layers.iter().map(|layer| layer.stages.len());
        let n_stages = n_stages.max().unwrap_or(0);
        let mut progress = Progress::new(n_layers, n_stages, self.monitor.live());
        if n_finished > 0 {
            let written = Written::open(writer, self.source, self.settings, plan)?;
            for layer in 0..n_finished {
                self.monitor.enter(format!("layer {layer}, as written"));
                (times.forward)
                    .time(|| written.run_layer(self, &mut activations, layer))
                    .with_context(|| format!("layer {layer}, as it was written"))?;
                progress.layer_skipped();
            }
        }
        for layer in n_finished..n_layers {
            let done = LayerRun::load(self, outbox, layer)?.quantize(
                &mut activations,
                times,
                |stage, linears, tokens_per_second| {
                    let error = linears
                        .iter()
                        .map(|linear| linear.relative_error)
                        .sum::<f64>()
                        / linears.len().max(1) as f64;
                    progress.stage_done(layer, stage.name, error, tokens_per_second);
                },
            )?;
            for linear in &done {
                tracing::debug!(
                    "{}: relative error {:.2e}, {:.2} s",
                    linear.name,
                    linear.relative_error,
                    linear.seconds
                );
            }
            let finished = Finished {
                linears: done,
                tower: tower.cloned(),
            };
            outbox.settled(serde_json::to_value(&finished)?)?;
            reports.extend(finished.linears);
        }
        Ok(reports)
    }

    /// The windows' embeddings, with what the model sees in the places of their images.
    fn embed(&self, plan: &Plan, times: &mut Times) -> Result<Activations<'_>> {
        let Self {
            source, compute, ..
        } = *self;
        let ids = sight::without_placeholders(&source.model, self.windows);
        self.monitor.enter("embedding");
        let mut activations =
            Activations::embed(&source.model, source, compute, &ids, &plan.memory)?;
        if let Some(processor) = self.images {
            self.monitor.enter("images");
            (times.images).time(|| {
                let weights = AsWritten {
                    source,
                    tower: &plan.tower,
                    scheme: self.settings.scheme,
                };
                sight::show(
                    source,
                    &weights,
                    compute,
                    processor,
                    self.windows,
                    |window, places, features| activations.show(window, places, features),
                )
            })?;
        }
        Ok(activations)
    }
}

/// Embedding, final norm and head as float16; tensors that the family does not use, byte for byte.
fn write_outside_layers(writer: &Writer, source: &ModelDir, plan: &Plan) -> Result<()> {
    let checkpoint = &source.checkpoint;
    for (name, _) in source.model.outer_tensors() {
        let info = checkpoint.info(&name).with_context(|| name.clone())?;
        let bytes = crate::tensor::raw_to_f16_bytes(checkpoint.bytes(&name)?, info.dtype).map_err(
            |problem| {
                InputError::new(
                    &info.file,
                    format!("{name}: {problem}"),
                    "repair the checkpoint, or rescale this tensor",
                )
            },
        )?;
        writer.write(&name, &bytes)?;
        checkpoint.release(&name);
    }
    for name in &plan.extras {
        writer.copy_tensor(checkpoint, name)?;
    }
    Ok(())
}
