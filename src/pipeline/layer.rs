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
use crate::model::{Block, Fold, LayerPlan, Linear, LinearPlan, Stage, Stored};
use crate::quant::{InputStats, QuantizedLinear, awq};
use crate::report::LinearReport;

/// The layer being quantized: its small float tensors, and the codes that a later stage may still rescale.
pub struct LayerRun<'a> {
    run: &'a Run<'a>,
    layer: usize,
    plan: &'a LayerPlan,
    /// Its norms hold what will be stored.
    block: Block,
    /// By their linear's name; float32, as they will be stored.
    biases: Vec<(String, Vec<f32>)>,
    /// Linears, by their names, whose rows a later stage's scale will be folded into.
    pending: Vec<(String, QuantizedLinear)>,
    /// Stages whose tensors are not all final, or final since the last line of the journal.
    unjournaled: Vec<&'static str>,
}

impl<'a> LayerRun<'a> {
    /// Loads the layer's norms and biases.
    pub fn load(run: &'a Run<'a>, layer: usize) -> Result<Self> {
        let (model, source) = (&run.source.model, run.source);
        let plan = &model.layers[layer];
        let mut biases = Vec::new();
        for linear in plan.linears() {
            if let Some(bias) = linear.bias(source)? {
                biases.push((linear.name.clone(), crate::tensor::to_f32(&bias)?));
            }
        }
        Ok(Self {
            run,
            layer,
            plan,
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
        for (index, stage) in self.plan.stages.iter().enumerate() {
            let start = Instant::now();
            self.prefetch(index);
            let stats = times
                .statistics
                .time(|| activations.observe(&self.block, stage))
                .with_context(|| format!("layer {}, input of {}", self.layer, stage.name))?;
            let n_tokens = stats.n_tokens;
            let linears = times.load.time(|| self.load_linears(stage))?;
            let energies = times.solve.time(|| output_energies(&linears, &stats))?;
            let solved = times
                .solve
                .time(|| self.solve(stage, linears, stats, activations, proof.as_mut()))?;
            let mut running = Vec::new();
            let first = reports.len();
            for ((linear, solved), energy) in stage.linears.iter().zip(solved).zip(energies) {
                running.push(self.running(linear, &solved.quantized)?);
                reports.push(LinearReport {
                    name: linear.name.clone(),
                    layer: self.layer,
                    stage: stage.name,
                    out_features: linear.out_features,
                    in_features: linear.in_features,
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
                if folds && self.is_fold_source(linear) {
                    self.pending.push((linear.name.clone(), solved.quantized));
                } else {
                    (self.run.outbox).linear(linear.name.clone(), solved.quantized)?;
                }
            }
            // Nothing reads what the last stage of all would make.
            if self.layer + 1 < model.config.n_layers || index + 1 < self.plan.stages.len() {
                times
                    .forward
                    .time(|| activations.advance(&self.block, stage, running))?;
            }
            if index + 1 == self.plan.stages.len()
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
        stage
            .linears
            .iter()
            .map(|linear| {
                let (tensor, _) = linear.weight_source();
                let weight = linear.weight(self.run.source)?;
                let weight = weight.f_to_kind(tch::Kind::Float)?;
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
                let name = linear.name.clone();
                Ok(FloatLinear { name, weight })
            })
            .collect()
    }

    /// Codes for the stage's linears. With AWQ the channel scale is folded away on the way, in `activations` and the proof too.
    fn solve(
        &mut self,
        stage: &'a Stage,
        linears: Vec<FloatLinear>,
        stats: InputStats,
        activations: &mut Activations,
        proof: Option<&mut FoldProof<'a>>,
    ) -> Result<Vec<Solved>> {
        let scheme = self.run.settings.scheme;
        match &self.run.settings.solver {
            Solver::Rtn => solve::rtn(&linears, &stats, scheme),
            Solver::Gptq(settings) => solve::gptq(linears, stats, scheme, settings)
                .with_context(|| format!("layer {}, {}", self.layer, stage.name)),
            Solver::Awq => self.solve_awq(stage, linears, stats, activations, proof),
        }
    }

    fn solve_awq(
        &mut self,
        stage: &'a Stage,
        mut linears: Vec<FloatLinear>,
        stats: InputStats,
        activations: &mut Activations,
        mut proof: Option<&mut FoldProof<'a>>,
    ) -> Result<Vec<Solved>> {
        let scheme = self.run.settings.scheme;
        let start = Instant::now();
        let classes = match &stage.fold {
            Fold::Rows { rows, .. } => Some(&rows[..]),
            Fold::Norm(_) | Fold::None => None,
        };
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
            let search = awq::search_scale(&weights, &stats, scheme, classes, CLIP)?;
            (ScaleFound::of(&search), search.channel_scale)
        };
        drop(weights);
        let biases = linears.iter().map(|linear| self.bias(&linear.name));
        let biases = biases.collect::<Result<Vec<_>>>()?;
        if let Some(proof) = &mut proof {
            proof.advance_original(stage, &linears, &biases)?;
        }
        let divisors = self.fold(stage, &mut scale, activations)?;
        let stats = awq::scale_stats(stats, &scale)?;
        let columns = Tensor::f_from_slice(&scale)?;
        for linear in &mut linears {
            let _ = linear.weight.f_mul_(&columns)?;
        }
        let search_seconds = start.elapsed().as_secs_f64();
        if let Some(proof) = proof {
            proof.advance_folded(stage, &linears, &biases, &self.block, &divisors)?;
        }
        solve::awq(&linears, &stats, &found, search_seconds, scheme)
    }

    /// Divides what comes before the stage by the channel `scale`, and makes `scale` what that really applied.
    ///
    /// Returns the divisors of the source's rows, where the fold goes into rows.
    fn fold(
        &mut self,
        stage: &Stage,
        scale: &mut Vec<f32>,
        activations: &mut Activations,
    ) -> Result<Vec<f32>> {
        let model = &self.run.source.model;
        match &stage.fold {
            Fold::None => Ok(Vec::new()),
            Fold::Norm(site) => {
                let norm = self.block.norm_mut(*site);
                let weight = norm.weight.as_ref().context("a norm that is folded into")?;
                let weight = crate::tensor::to_f32(weight)?;
                let (stored, applied) = divide_norm(&weight, model.arch.norm.offset(), scale);
                *scale = applied;
                norm.divide(&stored, scale)?;
                for linear in &stage.dense {
                    self.block.dense_mut(&linear.name).scale_columns(scale)?;
                }
                Ok(Vec::new())
            }
            Fold::Rows { linear, rows, root } => {
                let pending = self.pending.iter_mut().find(|pending| pending.0 == *linear);
                let (_, quantized) = pending.with_context(|| format!("{linear} is not solved"))?;
                let mut divisors = vec![1.0; quantized.out_features];
                for (row, scale) in rows.iter().zip(&*scale) {
                    divisors[*row] = if *root { scale.sqrt() } else { *scale };
                }
                quantized.divide_rows(&divisors);
                if let Some((_, bias)) = self.biases.iter_mut().find(|bias| bias.0 == *linear) {
                    for (bias, divisor) in bias.iter_mut().zip(&divisors) {
                        *bias /= divisor;
                    }
                }
                if let Some(slot) = stage.input.slot() {
                    activations.divide_rows(linear, &divisors, slot, scale)?;
                }
                Ok(divisors)
            }
        }
    }

    /// A linear's bias in float32, as it will be stored.
    fn bias(&self, linear: &str) -> Result<Option<Tensor>> {
        let bias = self.biases.iter().find(|bias| bias.0 == linear);
        Ok(bias
            .map(|(_, values)| Tensor::f_from_slice(values))
            .transpose()?)
    }

    /// The linear as the runtimes will compute it.
    fn running(&self, linear: &LinearPlan, quantized: &QuantizedLinear) -> Result<Linear> {
        let place = |tensor: Tensor| {
            tensor
                .f_to_device(self.run.compute.device)?
                .f_to_kind(self.run.compute.kind)
        };
        Ok(Linear {
            weight: place(quantized.dequantize_tensor()?)?,
            bias: self.bias(&linear.name)?.map(place).transpose()?,
        })
    }

    fn is_fold_source(&self, source: &LinearPlan) -> bool {
        let folds = self.plan.stages.iter().map(|stage| &stage.fold);
        folds
            .into_iter()
            .any(|fold| matches!(fold, Fold::Rows { linear, .. } if *linear == source.name))
    }

    /// Asks for the weights of the stage after this one, so that the disk works while this one is computed.
    fn prefetch(&self, index: usize) {
        let source = self.run.source;
        let next = (self.plan.stages.get(index + 1))
            .or_else(|| source.model.layers.get(self.layer + 1)?.stages.first());
        let linears = next.iter().flat_map(|stage| &stage.linears);
        // Of a tensor that stands for many linears only a part is wanted.
        for linear in linears.filter(|linear| !matches!(linear.stored, Stored::Stacked(_))) {
            source.checkpoint.prefetch(&linear.weight_name());
        }
    }

    /// Writes what waited for `stage`, with the layer's last stage the norms and biases too, and journals the stages whose
    /// tensors are all final now.
    fn settle(&mut self, stage: &Stage) -> Result<()> {
        self.unjournaled.push(stage.name);
        if let Fold::Rows { linear, .. } = &stage.fold
            && let Some(position) = self.pending.iter().position(|pending| pending.0 == *linear)
        {
            let (name, quantized) = self.pending.remove(position);
            self.run.outbox.linear(name, quantized)?;
        }
        if self.plan.stages.last() == Some(stage) {
            for plan in &self.plan.norms {
                let norm = self.block.norm(plan.site);
                let stored = [norm.weight.as_ref(), norm.bias.as_ref()];
                for ((name, _), tensor) in plan.tensors().zip(stored.into_iter().flatten()) {
                    let values = crate::tensor::to_f32(tensor)?;
                    self.run.outbox.float16(name, values)?;
                }
            }
            for plan in self.plan.dense() {
                let linear = self.block.dense(&plan.name);
                let weight = crate::tensor::to_f32(&linear.weight)?;
                self.run.outbox.float16(plan.weight_name(), weight)?;
                if let Some(bias) = &linear.bias {
                    let bias = crate::tensor::to_f32(bias)?;
                    self.run.outbox.float16(plan.bias_name(), bias)?;
                }
            }
            if let (Some((name, _)), Some(sinks)) = (&self.plan.sinks, &self.block.sinks) {
                let values = crate::tensor::to_f32(sinks)?;
                self.run.outbox.float16(name.clone(), values)?;
            }
            for (linear, bias) in self.biases.drain(..) {
                self.run.outbox.float16(format!("{linear}.bias"), bias)?;
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
