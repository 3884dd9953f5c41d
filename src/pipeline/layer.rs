//! One layer from float to codes, stage by stage: observe the input, solve, write, and run the quantized linears once.

mod experts;

use std::time::Instant;

use anyhow::{Context, Result};
use tch::Tensor;

use super::Times;
use super::activations::Activations;
use super::fold::{FoldProof, divide_norm};
use super::job::Job;
use super::outbox::Outbox;
use super::solve::{self, CLIP, FloatLinear, ScaleFound, Solved, SolvedWeight};
use crate::cli::settings::Solver;
use crate::fault::InputError;
use crate::model::{Block, Fold, LayerPlan, Linear, LinearPlan, Stage, StageInput, Stored};
use crate::quant::{InputStats, awq};
use crate::report::LinearReport;

/// The layer being quantized: its small float tensors, and the codes that a later stage may still rescale.
pub struct LayerRun<'a> {
    job: &'a Job<'a>,
    outbox: &'a Outbox,
    layer: usize,
    plan: &'a LayerPlan,
    /// Its norms hold what will be stored.
    block: Block,
    /// By their linear's name; float32, as they will be stored.
    biases: Vec<(String, Vec<f32>)>,
    /// What the columns of the experts' first linears are to be multiplied by, because the norm before them was divided by
    /// it; and how it was found.
    expert_scale: Option<(Vec<f32>, ScaleFound)>,
    /// Linears whose rows a later stage's scale will be folded into.
    pending: Vec<(&'a LinearPlan, SolvedWeight)>,
}

impl<'a> LayerRun<'a> {
    /// Loads the layer's norms and biases.
    pub fn load(job: &'a Job<'a>, outbox: &'a Outbox, layer: usize) -> Result<Self> {
        let (model, source) = (&job.source.model, job.source);
        let plan = &model.layers[layer];
        let mut biases = Vec::new();
        for linear in plan.linears() {
            if let Some(bias) = linear.bias(source)? {
                biases.push((linear.name.clone(), crate::tensor::to_f32(&bias)?));
            }
        }
        Ok(Self {
            job,
            outbox,
            layer,
            plan,
            block: Block::load(model, source, job.compute, layer)?,
            biases,
            expert_scale: None,
            pending: Vec::new(),
        })
    }

    /// Quantizes all stages and takes `activations` through them. `stage_done` hears of each stage.
    pub fn quantize(
        mut self,
        activations: &mut Activations<'_>,
        times: &mut Times,
        mut stage_done: impl FnMut(&Stage, &[LinearReport], f64),
    ) -> Result<Vec<LinearReport>> {
        let mut reports = Vec::new();
        let folds = self.job.settings.solver.folds();
        let model = &self.job.source.model;
        activations.enter_layer(self.job.source, self.layer)?;
        let probe = if folds {
            activations.probe(&self.block)?
        } else {
            None
        };
        let source = self.job.source;
        let mut proof = probe
            .map(|(state, places)| FoldProof::new(model, source, self.layer, &state, places))
            .transpose()?;
        for (index, stage) in self.plan.stages.iter().enumerate() {
            let start = Instant::now();
            let monitor = self.job.monitor;
            monitor.enter(format!("layer {}, {}", self.layer, stage.name));
            self.prefetch(index);
            // Nothing reads what the last stage of all would make.
            let advance =
                self.layer + 1 < model.config.n_layers || index + 1 < self.plan.stages.len();
            let first = reports.len();
            let proof_here = proof.as_mut();
            reports.extend(if stage.experts.is_empty() {
                self.quantize_stage(stage, activations, times, proof_here, advance)?
            } else {
                self.quantize_experts(stage, activations, times, proof_here, advance)?
            });
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
            let n_tokens = activations.n_tokens() as f64;
            let tokens_per_second = n_tokens / start.elapsed().as_secs_f64();
            stage_done(stage, &reports[first..], tokens_per_second);
        }
        activations.leave_layer()?;
        Ok(reports)
    }

    /// Quantizes the linears of a stage without experts and, where `advance` says so, takes `activations` through them.
    fn quantize_stage(
        &mut self,
        stage: &'a Stage,
        activations: &mut Activations<'_>,
        times: &mut Times,
        proof: Option<&mut FoldProof<'a>>,
        advance: bool,
    ) -> Result<Vec<LinearReport>> {
        let folds = self.job.settings.solver.folds();
        let mut reports = Vec::new();
        let mut running = Vec::new();
        let load = || stage.linears.iter().map(|linear| self.load_linear(linear));
        let load = || load().collect::<Result<Vec<_>>>();
        // Where nothing that reads the input is quantized, only a search for the experts' scale needs its statistics.
        let is_searched = folds && stage.fold != Fold::None && self.plan.scales_experts(stage);
        let solved = if is_searched || stage.linears.iter().any(|linear| !linear.in_float) {
            let stats = times
                .statistics
                .time(|| activations.observe(&self.block, stage))
                .with_context(|| format!("layer {}, input of {}", self.layer, stage.name))?;
            let image_tokens = if stage.input == StageInput::Images {
                stats.n_tokens
            } else {
                activations.n_image_tokens()
            };
            let tokens = [stats.n_tokens, image_tokens];
            let linears = times.load.time(load)?;
            let energies = times.solve.time(|| output_energies(&linears, &stats))?;
            let solved = times
                .solve
                .time(|| self.solve(stage, linears, stats, activations, proof))?;
            for ((linear, solved), energy) in stage.linears.iter().zip(&solved).zip(energies) {
                reports.extend(self.report(stage, linear, solved, energy, tokens));
            }
            solved
        } else {
            let linears = times.load.time(load)?;
            if let Some(proof) = proof {
                let biases = self.biases(&linears)?;
                proof.advance_original(stage, &linears, &biases)?;
                proof.advance_folded(stage, &linears, &biases, &self.block, &[])?;
            }
            solve::all_but_float(linears, |_| Ok(Vec::new()))?
        };
        for (linear, solved) in stage.linears.iter().zip(solved) {
            running.push(self.running(linear, &solved.weight)?);
            if folds && self.is_fold_source(linear) {
                self.pending.push((linear, solved.weight));
            } else {
                self.write(linear, solved.weight)?;
            }
        }
        if advance && !stage.mixes.is_empty() {
            times
                .forward
                .time(|| activations.advance(&self.block, stage, running))?;
        }
        Ok(reports)
    }

    /// What became of a linear whose outputs' mean square is `energy` and that saw so many tokens, and so many of them of
    /// images; `None` where it stays in float.
    fn report(
        &self,
        stage: &Stage,
        linear: &LinearPlan,
        solved: &Solved,
        energy: f64,
        [tokens, image_tokens]: [usize; 2],
    ) -> Option<LinearReport> {
        (!linear.in_float).then(|| LinearReport {
            name: linear.name.clone(),
            layer: self.layer,
            stage: stage.name.to_owned(),
            out_features: linear.out_features,
            in_features: linear.in_features,
            error: solved.error,
            relative_error: if energy > 0.0 {
                solved.error / energy
            } else {
                0.0
            },
            tokens,
            image_tokens,
            routed_tokens: None,
            seconds: solved.seconds,
            awq: solved.awq.clone(),
            gptq: solved.gptq.clone(),
        })
    }

    /// Sends a linear's weight to be written as it is stored.
    fn write(&self, linear: &LinearPlan, weight: SolvedWeight) -> Result<()> {
        match weight {
            SolvedWeight::Codes(quantized) => self.outbox.linear(linear.name.clone(), quantized),
            SolvedWeight::Float(weight) => {
                let stored = match linear.stored {
                    Stored::Transposed => weight.f_tr()?.f_contiguous()?,
                    Stored::Own | Stored::Stacked(_) => weight,
                };
                let values = crate::tensor::to_f32(&stored)?;
                self.outbox.float16(linear.weight_name(), values)
            }
        }
    }

    /// A linear's float weight, checked for NaN and infinity.
    fn load_linear(&self, linear: &LinearPlan) -> Result<FloatLinear> {
        let source = self.job.source;
        let weight = linear.weight(source)?.f_to_kind(tch::Kind::Float)?;
        let bad = weight.f_isfinite()?.f_logical_not()?;
        let bad = bad.f_sum(tch::Kind::Int64)?.f_int64_value(&[])?;
        if bad > 0 {
            let tensor = linear.weight_sources().swap_remove(0).0;
            let info = source.checkpoint.info(&tensor);
            let file = info.map_or(source.checkpoint.dir(), |info| &info.file);
            let problem = format!("{tensor} holds {bad} values that are NaN or infinite");
            let remedy = "repair or download the checkpoint again";
            return Err(InputError::new(file, problem, remedy).into());
        }
        Ok(FloatLinear {
            name: linear.name.clone(),
            weight,
            in_float: linear.in_float,
        })
    }

    /// Codes for linears as they are, whatever was folded into them before.
    fn solve_as_is(
        &self,
        linears: Vec<FloatLinear>,
        stats: InputStats,
        found: &ScaleFound,
    ) -> Result<Vec<Solved>> {
        let scheme = self.job.settings.scheme;
        solve::all_but_float(linears, |linears| match &self.job.settings.solver {
            Solver::Rtn => solve::rtn(&linears, &stats, scheme),
            Solver::Gptq(settings) => solve::gptq(linears, stats, scheme, settings),
            Solver::Awq => solve::awq(&linears, &stats, found, 0.0, scheme),
        })
    }

    /// Codes for the stage's linears. With AWQ the channel scale is folded away on the way, in `activations` and the proof too.
    fn solve(
        &mut self,
        stage: &'a Stage,
        linears: Vec<FloatLinear>,
        stats: InputStats,
        activations: &mut Activations<'_>,
        proof: Option<&mut FoldProof<'a>>,
    ) -> Result<Vec<Solved>> {
        if self.job.settings.solver.folds() {
            return self.solve_awq(stage, linears, stats, activations, proof);
        }
        (self.solve_as_is(linears, stats, &ScaleFound::none()))
            .with_context(|| format!("layer {}, {}", self.layer, stage.name))
    }

    fn solve_awq(
        &mut self,
        stage: &'a Stage,
        mut linears: Vec<FloatLinear>,
        stats: InputStats,
        activations: &mut Activations<'_>,
        mut proof: Option<&mut FoldProof<'a>>,
    ) -> Result<Vec<Solved>> {
        let scheme = self.job.settings.scheme;
        let start = Instant::now();
        let classes = match &stage.fold {
            Fold::Rows { rows, .. } => Some(&rows[..]),
            Fold::Norm(_) | Fold::None => None,
        };
        let mut weights: Vec<Tensor> = (linears.iter())
            .filter(|linear| !linear.in_float)
            .map(|linear| linear.weight.shallow_clone())
            .collect();
        let scales_experts = self.plan.scales_experts(stage);
        if scales_experts {
            weights.extend(self.sample_experts()?);
        }
        let (found, mut scale) = if stage.fold == Fold::None || weights.is_empty() {
            (
                ScaleFound::none(),
                vec![1.0; stats.abs_sum.size1()? as usize],
            )
        } else {
            let search = awq::search_scale(&weights, &stats, scheme, classes, CLIP)?;
            (ScaleFound::of(&search), search.channel_scale)
        };
        drop(weights);
        let biases = self.biases(&linears)?;
        if let Some(proof) = &mut proof {
            proof.advance_original(stage, &linears, &biases)?;
        }
        let divisors = self.fold(stage, &mut scale, activations)?;
        let stats = awq::scale_stats(stats, &scale)?;
        scale_columns(&mut linears, &scale)?;
        if scales_experts {
            self.expert_scale = Some((scale, found.clone()));
        }
        let search_seconds = start.elapsed().as_secs_f64();
        if let Some(proof) = proof {
            proof.advance_folded(stage, &linears, &biases, &self.block, &divisors)?;
        }
        solve::all_but_float(linears, |linears| {
            solve::awq(&linears, &stats, &found, search_seconds, scheme)
        })
    }

    /// Divides what comes before the stage by the channel `scale`, and makes `scale` what that really applied.
    ///
    /// Returns the divisors of the source's rows, where the fold goes into rows.
    fn fold(
        &mut self,
        stage: &Stage,
        scale: &mut Vec<f32>,
        activations: &mut Activations<'_>,
    ) -> Result<Vec<f32>> {
        match &stage.fold {
            Fold::None => Ok(Vec::new()),
            Fold::Norm(site) => {
                let norm = self.block.norm_mut(*site);
                let weight = norm.weight.as_ref().context("a norm that is folded into")?;
                let weight = crate::tensor::to_f32(weight)?;
                let plan = self.plan.norms.iter().find(|norm| norm.site == *site);
                let offset = plan.map_or(0.0, |norm| norm.kind.offset());
                let (stored, applied) = divide_norm(&weight, offset, scale);
                *scale = applied;
                norm.divide(&stored, scale)?;
                for linear in &stage.dense {
                    self.block.dense_mut(&linear.name).scale_columns(scale)?;
                }
                Ok(Vec::new())
            }
            Fold::Rows { linear, rows, root } => {
                let mut pending = self.pending.iter_mut();
                let pending = pending.find(|pending| pending.0.name == *linear);
                let (_, weight) = pending.with_context(|| format!("{linear} is not solved"))?;
                let divisors = divisors(rows, *root, scale, weight.out_features());
                weight.divide_rows(&divisors)?;
                self.divide_bias(linear, &divisors);
                if let Some(slot) = stage.input.slot() {
                    activations.divide_rows(linear, &divisors, slot, scale)?;
                }
                Ok(divisors)
            }
        }
    }

    fn divide_bias(&mut self, linear: &str, divisors: &[f32]) {
        if let Some((_, bias)) = self.biases.iter_mut().find(|bias| bias.0 == linear) {
            for (bias, divisor) in bias.iter_mut().zip(divisors) {
                *bias /= divisor;
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

    fn biases(&self, linears: &[FloatLinear]) -> Result<Vec<Option<Tensor>>> {
        (linears.iter())
            .map(|linear| self.bias(&linear.name))
            .collect()
    }

    /// The linear as the runtimes will compute it.
    fn running(&self, linear: &LinearPlan, weight: &SolvedWeight) -> Result<Linear> {
        let place = |tensor: Tensor| {
            tensor
                .f_to_device(self.job.compute.device)?
                .f_to_kind(self.job.compute.kind)
        };
        Ok(Linear {
            weight: place(weight.dequantize()?)?,
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
        let source = self.job.source;
        let next = (self.plan.stages.get(index + 1))
            .or_else(|| source.model.layers.get(self.layer + 1)?.stages.first());
        let linears = next.iter().flat_map(|stage| &stage.linears);
        // Of a tensor that stands for many linears only a part is wanted.
        for linear in linears.filter(|linear| !matches!(linear.stored, Stored::Stacked(_))) {
            source.checkpoint.prefetch(&linear.weight_name());
        }
    }

    /// Writes what waited for `stage`, with the layer's last stage the norms and biases too.
    fn settle(&mut self, stage: &Stage) -> Result<()> {
        if let Fold::Rows { linear, .. } = &stage.fold
            && let Some(position) =
                (self.pending.iter()).position(|pending| pending.0.name == *linear)
        {
            let (linear, weight) = self.pending.remove(position);
            self.write(linear, weight)?;
        }
        if self.plan.stages.last() == Some(stage) {
            for plan in &self.plan.norms {
                let norm = self.block.norm(plan.site);
                let stored = [norm.weight.as_ref(), norm.bias.as_ref()];
                for ((name, _), tensor) in plan.tensors().zip(stored.into_iter().flatten()) {
                    let values = crate::tensor::to_f32(tensor)?;
                    self.outbox.float16(name, values)?;
                }
            }
            for plan in self.plan.dense() {
                let linear = self.block.dense(&plan.name);
                let weight = crate::tensor::to_f32(&linear.weight)?;
                self.outbox.float16(plan.weight_name(), weight)?;
                if let Some(bias) = &linear.bias {
                    let bias = crate::tensor::to_f32(bias)?;
                    self.outbox.float16(plan.bias_name(), bias)?;
                }
            }
            for (linear, bias) in self.biases.drain(..) {
                self.outbox.float16(format!("{linear}.bias"), bias)?;
            }
        }
        Ok(())
    }
}

/// Multiplies the columns of `linears` by `scale`.
fn scale_columns(linears: &mut [FloatLinear], scale: &[f32]) -> Result<()> {
    let columns = Tensor::f_from_slice(scale)?;
    for linear in linears {
        let _ = linear.weight.f_mul_(&columns)?;
    }
    Ok(())
}

/// What the rows of a linear are divided by where a fold takes `scale` into some of them.
fn divisors(rows: &[usize], root: bool, scale: &[f32], out_features: usize) -> Vec<f32> {
    let mut divisors = vec![1.0; out_features];
    for (row, scale) in rows.iter().zip(scale) {
        divisors[*row] = if root { scale.sqrt() } else { *scale };
    }
    divisors
}

/// The mean square of each linear's own output, summed over its features: what its error is relative to; 0 for those that stay
/// in float.
fn output_energies(linears: &[FloatLinear], stats: &InputStats) -> Result<Vec<f64>> {
    linears
        .iter()
        .map(|linear| {
            if linear.in_float {
                return Ok(0.0);
            }
            Ok(crate::quant::output_error(&linear.weight, stats)?)
        })
        .collect()
}
