//! One layer from float to codes, stage by stage: observe the input, solve, write, and run the quantized linears once.

use std::time::Instant;

use anyhow::{Context, Result};
use tch::Tensor;

use super::activations::Activations;
use super::fold::{FoldProof, divide_norm};
use super::solve::{self, CLIP, FloatLinear, ScaleFound, Solved};
use super::{Run, Times};
use crate::cli::settings::Solver;
use crate::fault::InputError;
use crate::model::{Block, Fold, Linear, Role, Stage, Weights};
use crate::quant::{InputStats, QuantizedLinear, awq};
use crate::report::LinearReport;

/// The layer being quantized: its small float tensors, and the codes that a later stage may still rescale.
pub struct LayerRun<'a> {
    run: &'a Run<'a>,
    layer: usize,
    /// Its norms hold what will be stored.
    block: Block,
    /// Float32, as they will be stored.
    biases: Vec<(Role, Vec<f32>)>,
    /// Linears whose rows a later stage's scale will be folded into.
    pending: Vec<(Role, QuantizedLinear)>,
    /// Stages whose tensors are not all final, or final since the last line of the journal.
    unjournaled: Vec<&'static str>,
}

impl<'a> LayerRun<'a> {
    /// Loads the layer's norms and biases.
    pub fn load(run: &'a Run<'a>, layer: usize) -> Result<Self> {
        let (model, source) = (&run.source.model, run.source);
        let mut biases = Vec::new();
        for linear in model.arch.linears {
            if model.has_bias(linear.role) {
                let name = model.bias_name(layer, linear.role);
                let (rows, _) = model.linear_shape(linear.role);
                let bias = crate::tensor::to_f32(&source.tensor(&name, &[rows])?)?;
                biases.push((linear.role, bias));
            }
        }
        Ok(Self {
            run,
            layer,
            block: Block::load(model, source, run.compute, layer)?,
            biases,
            pending: Vec::new(),
            unjournaled: Vec::new(),
        })
    }

    /// Quantizes all stages and takes `activations` through them. `stage_done` hears of each stage.
    pub fn quantize(
        mut self,
        activations: &mut Activations,
        times: &mut Times,
        mut stage_done: impl FnMut(&Stage, &[LinearReport], f64),
    ) -> Result<Vec<LinearReport>> {
        let mut reports = Vec::new();
        let folds = self.run.settings.solver.folds();
        let model = &self.run.source.model;
        let mut proof = folds
            .then(|| {
                let hidden = activations.first_hidden();
                FoldProof::new(model, self.run.source, self.layer, hidden)
            })
            .transpose()?;
        for (index, stage) in model.arch.stages.iter().enumerate() {
            let start = Instant::now();
            self.prefetch(index);
            let (_, inp) = model.linear_shape(stage.linears[0]);
            let stats = times
                .statistics
                .time(|| activations.observe(&self.block, stage, inp))
                .with_context(|| format!("layer {}, input of {}", self.layer, stage.name))?;
            let n_tokens = stats.n_tokens;
            let linears = times.load.time(|| self.load_linears(stage))?;
            let energies = times.solve.time(|| output_energies(&linears, &stats))?;
            let solved = times
                .solve
                .time(|| self.solve(stage, linears, stats, activations, proof.as_mut()))?;
            let mut running = Vec::new();
            let first = reports.len();
            for ((role, solved), energy) in stage.linears.iter().zip(solved).zip(energies) {
                running.push(self.running(*role, &solved.quantized)?);
                let (out, inp) = (solved.quantized.out_features, solved.quantized.in_features);
                reports.push(LinearReport {
                    name: self.run.source.model.linear_name(self.layer, *role),
                    layer: self.layer,
                    stage: stage.name,
                    out_features: out,
                    in_features: inp,
                    error: solved.error,
                    relative_error: if energy > 0.0 {
                        solved.error / energy
                    } else {
                        0.0
                    },
                    tokens: n_tokens,
                    seconds: solved.seconds,
                    awq: solved.awq,
                    gptq: solved.gptq,
                });
                if folds && self.is_fold_source(*role) {
                    self.pending.push((*role, solved.quantized));
                } else {
                    self.write(*role, solved.quantized)?;
                }
            }
            // Nothing reads what the last stage of all would make.
            if self.layer + 1 < model.config.n_layers || index + 1 < model.arch.stages.len() {
                times
                    .forward
                    .time(|| activations.advance(&self.block, stage, running))?;
            }
            if index + 1 == model.arch.stages.len()
                && let Some(proof) = proof.take()
            {
                let change = proof
                    .finish()
                    .with_context(|| format!("layer {}", self.layer))?;
                tracing::debug!(
                    "layer {}: float output after folding differs by {change:.1e}",
                    self.layer
                );
            }
            self.settle(stage)?;
            stage_done(
                stage,
                &reports[first..],
                n_tokens as f64 / start.elapsed().as_secs_f64(),
            );
        }
        Ok(reports)
    }

    /// The stage's float weights, checked for NaN and infinity.
    fn load_linears(&self, stage: &Stage) -> Result<Vec<FloatLinear>> {
        let model = &self.run.source.model;
        stage
            .linears
            .iter()
            .map(|&role| {
                let name = model.linear_name(self.layer, role);
                let (out, inp) = model.linear_shape(role);
                let tensor = format!("{name}.weight");
                let weight = self
                    .run
                    .source
                    .tensor(&tensor, &[out, inp])?
                    .f_to_kind(tch::Kind::Float)?;
                let bad = weight
                    .f_isfinite()?
                    .f_logical_not()?
                    .f_sum(tch::Kind::Int64)?
                    .f_int64_value(&[])?;
                if bad > 0 {
                    let file = self
                        .run
                        .source
                        .checkpoint
                        .info(&tensor)
                        .map_or(self.run.source.checkpoint.dir(), |info| &info.file);
                    let problem = format!("{tensor} holds {bad} values that are NaN or infinite");
                    return Err(InputError::new(
                        file,
                        problem,
                        "repair or download the checkpoint again",
                    )
                    .into());
                }
                Ok(FloatLinear { role, name, weight })
            })
            .collect()
    }

    /// Codes for the stage's linears. With AWQ the channel scale is folded away on the way, in `activations` and the proof too.
    fn solve(
        &mut self,
        stage: &'static Stage,
        linears: Vec<FloatLinear>,
        stats: InputStats,
        activations: &mut Activations,
        proof: Option<&mut FoldProof<'static>>,
    ) -> Result<Vec<Solved>> {
        let scheme = self.run.settings.scheme;
        match &self.run.settings.solver {
            Solver::Rtn => solve::rtn(&linears, &stats, scheme),
            Solver::Gptq(settings) => solve::gptq(&linears, stats, scheme, settings)
                .with_context(|| format!("layer {}, {}", self.layer, stage.name)),
            Solver::Awq => self.solve_awq(stage, linears, stats, activations, proof),
        }
    }

    fn solve_awq(
        &mut self,
        stage: &'static Stage,
        linears: Vec<FloatLinear>,
        stats: InputStats,
        activations: &mut Activations,
        proof: Option<&mut FoldProof<'static>>,
    ) -> Result<Vec<Solved>> {
        let scheme = self.run.settings.scheme;
        let start = Instant::now();
        let classes = self.run.source.model.fold_classes(stage);
        let weights: Vec<Tensor> = linears
            .iter()
            .map(|linear| linear.weight.shallow_clone())
            .collect();
        let (found, mut scale) = if stage.fold == Fold::None {
            (
                ScaleFound::none(),
                vec![1.0; stats.abs_sum.size1()? as usize],
            )
        } else {
            let search = awq::search_scale(&weights, &stats, scheme, classes.as_deref(), CLIP)?;
            (ScaleFound::of(&search), search.channel_scale)
        };
        let divisors = self.fold(stage, &mut scale, classes.as_deref(), activations)?;
        let stats = awq::scale_stats(stats, &scale)?;
        let columns = Tensor::f_from_slice(&scale)?;
        let scaled = linears
            .iter()
            .map(|linear| {
                Ok(FloatLinear {
                    role: linear.role,
                    name: linear.name.clone(),
                    weight: linear.weight.f_mul(&columns)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let search_seconds = start.elapsed().as_secs_f64();
        if let Some(proof) = proof {
            let biases = linears
                .iter()
                .map(|linear| self.bias(linear.role))
                .collect::<Result<Vec<_>>>()?;
            let norm = match stage.fold {
                Fold::Norm(site) => Some(self.block.norm_weight(site)),
                _ => None,
            };
            proof.advance(stage, &linears, &biases, &scaled, norm, &divisors)?;
        }
        drop((linears, weights));
        solve::awq(&scaled, &stats, &found, search_seconds, scheme)
    }

    /// Divides what comes before the stage by the channel `scale`, and makes `scale` what that really applied.
    ///
    /// Returns the divisors of the source's rows, where the fold goes into rows.
    fn fold(
        &mut self,
        stage: &Stage,
        scale: &mut Vec<f32>,
        classes: Option<&[usize]>,
        activations: &mut Activations,
    ) -> Result<Vec<f32>> {
        let model = &self.run.source.model;
        match stage.fold {
            Fold::None => Ok(Vec::new()),
            Fold::Norm(site) => {
                let weight = crate::tensor::to_f32(self.block.norm_weight(site))?;
                let (stored, applied) = divide_norm(&weight, model.arch.norm.offset(), scale);
                *scale = applied;
                self.block
                    .set_norm_weight(site, &Tensor::f_from_slice(&stored)?)?;
                Ok(Vec::new())
            }
            Fold::Rows(role) => {
                let (rows, _) = model.linear_shape(role);
                let mut divisors = vec![1.0; rows];
                for (channel, scale) in scale.iter().enumerate() {
                    divisors[classes.map_or(channel, |classes| classes[channel])] = *scale;
                }
                for (_, quantized) in self
                    .pending
                    .iter_mut()
                    .filter(|(pending, _)| *pending == role)
                {
                    quantized.divide_rows(&divisors);
                }
                if let Some((_, bias)) = self.biases.iter_mut().find(|bias| bias.0 == role) {
                    for (bias, divisor) in bias.iter_mut().zip(&divisors) {
                        *bias /= divisor;
                    }
                }
                activations.divide_rows(role, &divisors, scale)?;
                Ok(divisors)
            }
        }
    }

    /// A linear's bias in float32, as it will be stored.
    fn bias(&self, role: Role) -> Result<Option<Tensor>> {
        let bias = self.biases.iter().find(|bias| bias.0 == role);
        Ok(bias
            .map(|(_, values)| Tensor::f_from_slice(values))
            .transpose()?)
    }

    /// The linear as the runtimes will compute it.
    fn running(&self, role: Role, quantized: &QuantizedLinear) -> Result<Linear> {
        let place = |tensor: Tensor| {
            tensor
                .f_to_device(self.run.compute.device)?
                .f_to_kind(self.run.compute.kind)
        };
        Ok(Linear {
            weight: place(quantized.dequantize_tensor()?)?,
            bias: self.bias(role)?.map(place).transpose()?,
        })
    }

    fn is_fold_source(&self, role: Role) -> bool {
        let stages = self.run.source.model.arch.stages;
        stages
            .iter()
            .any(|stage| matches!(stage.fold, Fold::Rows(source) if source == role))
    }

    /// Asks for the weights of the stage after this one, so that the disk works while this one is computed.
    fn prefetch(&self, index: usize) {
        let model = &self.run.source.model;
        let stages = model.arch.stages;
        let (layer, next) = match stages.get(index + 1) {
            Some(next) => (self.layer, next),
            None => (self.layer + 1, &stages[0]),
        };
        for &role in next.linears {
            let name = format!("{}.weight", model.linear_name(layer, role));
            self.run.source.checkpoint.prefetch(&name);
        }
    }

    fn write(&self, role: Role, quantized: QuantizedLinear) -> Result<()> {
        let module = self.run.source.model.linear_name(self.layer, role);
        self.run.outbox.linear(module, quantized)
    }

    /// Writes what waited for `stage`, with the layer's last stage the norms and biases too, and journals the stages whose
    /// tensors are all final now.
    fn settle(&mut self, stage: &Stage) -> Result<()> {
        let model = &self.run.source.model;
        self.unjournaled.push(stage.name);
        let (settled, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|(role, _)| stage.fold == Fold::Rows(*role));
        self.pending = pending;
        let settled: Vec<(Role, QuantizedLinear)> = settled;
        for (role, quantized) in settled {
            self.write(role, quantized)?;
        }
        if model.arch.stages.last() == Some(stage) {
            for &(site, _) in model.arch.norms {
                let norm = crate::tensor::to_f32(self.block.norm_weight(site))?;
                let name = model.norm_name(self.layer, site);
                self.run.outbox.float16(name, norm)?;
            }
            for (role, bias) in self.biases.drain(..) {
                let name = model.bias_name(self.layer, role);
                self.run.outbox.float16(name, bias)?;
            }
        }
        if self.pending.is_empty() {
            let stages = std::mem::take(&mut self.unjournaled);
            let record = serde_json::json!({"layer": self.layer, "stages": stages});
            self.run.outbox.settled(record)?;
        }
        Ok(())
    }
}

/// The mean square of each linear's own output, summed over its features: what its error is relative to.
fn output_energies(linears: &[FloatLinear], stats: &InputStats) -> Result<Vec<f64>> {
    linears
        .iter()
        .map(|linear| Ok(crate::quant::output_error(&linear.weight, stats)?))
        .collect()
}
