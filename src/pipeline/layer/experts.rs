//! A layer's experts from float to codes, one after the other: what must be in memory is one expert.

use anyhow::{Context, Result};
use tch::Tensor;

use super::{LayerRun, divisors, output_energies, scale_columns};
use crate::model::{ExpertPlan, Fold, Linear, Stage};
use crate::pipeline::Times;
use crate::pipeline::activations::{Activations, Selection};
use crate::pipeline::fold::{FoldProof, Streams};
use crate::pipeline::solve::{CLIP, FloatLinear, ScaleFound};
use crate::quant::awq;
use crate::report::LinearReport;

/// Experts that the search for the scale of what all of them read looks at, and rows of each of their linears.
const SAMPLED_EXPERTS: usize = 16;
const SAMPLED_ROWS: i64 = 64;

/// One expert on its way.
struct Expert<'a> {
    stage: &'a Stage,
    index: usize,
    plan: &'a ExpertPlan,
    selections: Vec<Selection>,
}

impl LayerRun<'_> {
    /// Rows of some experts' first linears, evenly spread: `[rows, in]` float32 each.
    pub(super) fn sample_experts(&self) -> Result<Vec<Tensor>> {
        let experts = self.plan.stages.iter().flat_map(|stage| &stage.experts);
        let experts: Vec<&ExpertPlan> = experts
            .filter(|expert| expert.inputs.iter().any(|linear| !linear.in_float))
            .collect();
        let n_sampled = SAMPLED_EXPERTS.min(experts.len());
        let mut samples = Vec::new();
        for sample in 0..n_sampled {
            let inputs = experts[sample * experts.len() / n_sampled].inputs.iter();
            for linear in inputs.filter(|linear| !linear.in_float) {
                let weight = self.load_linear(linear)?.weight;
                let step = (weight.size()[0] / SAMPLED_ROWS).max(1);
                let rows = weight.f_slice(0, 0, step * SAMPLED_ROWS, step)?;
                samples.push(rows.f_contiguous()?);
            }
        }
        Ok(samples)
    }

    /// Quantizes all experts of `stage` and, where `advance` says so, takes `activations` through them.
    pub(super) fn quantize_experts(
        &mut self,
        stage: &Stage,
        activations: &mut Activations<'_>,
        times: &mut Times,
        mut proof: Option<&mut FoldProof<'_>>,
        advance: bool,
    ) -> Result<Vec<LinearReport>> {
        let n_tokens = activations.n_tokens();
        let mut reports = Vec::new();
        for (index, plan) in stage.experts.iter().enumerate() {
            // A Gram matrix of fewer tokens than columns says nothing of some directions.
            let widest = plan.linears().map(|linear| linear.in_features).max();
            let wanted = if self.job.settings.moe_all_tokens {
                n_tokens
            } else {
                widest.unwrap_or(0)
            };
            let expert = Expert {
                stage,
                index,
                plan,
                selections: activations.select(&self.block, index, wanted)?,
            };
            let proof = proof.as_deref_mut();
            let done = self
                .quantize_expert(&expert, activations, times, proof, advance)
                .with_context(|| format!("layer {}, expert {index}", self.layer))?;
            reports.extend(done);
        }
        if advance {
            (times.forward).time(|| activations.finish_experts(&self.block, stage))?;
        }
        if let Some(proof) = proof {
            proof.finish_experts(stage)?;
        }
        Ok(reports)
    }

    fn quantize_expert(
        &mut self,
        expert: &Expert<'_>,
        activations: &mut Activations<'_>,
        times: &mut Times,
        proof: Option<&mut FoldProof<'_>>,
        advance: bool,
    ) -> Result<Vec<LinearReport>> {
        let (plan, stage, selections) = (expert.plan, expert.stage, &expert.selections);
        let observe = || activations.observe_expert(&self.block, stage, expert.index, selections);
        let stats = times.statistics.time(observe)?;
        let tokens = [
            stats.n_tokens,
            activations.n_selected_image_tokens(selections)?,
        ];
        let load = || plan.inputs.iter().map(|linear| self.load_linear(linear));
        let mut inputs = (times.load).time(|| load().collect::<Result<Vec<_>>>())?;
        let mut streams = Streams::default();
        if proof.is_some() {
            streams.original = self.copies(&inputs)?;
        }
        if let Some((scale, _)) = &self.expert_scale {
            scale_columns(&mut inputs, scale)?;
        }
        if proof.is_some() {
            streams.folded = self.copies(&inputs)?;
        }
        let mut energies = (times.solve).time(|| output_energies(&inputs, &stats))?;
        let found = self.expert_scale.as_ref();
        let found = found.map_or_else(ScaleFound::none, |scale| scale.1.clone());
        let mut solved = (times.solve).time(|| self.solve_as_is(inputs, stats, &found))?;
        let running = plan.inputs.iter().zip(&solved);
        let running = running.map(|(linear, solved)| self.running(linear, &solved.weight));
        let running = running.collect::<Result<Vec<_>>>()?;
        let mut activated = times.forward.time(|| {
            activations.expert_activations(&self.block, stage, expert.index, &running, selections)
        })?;
        drop(running);

        let width = plan.output.in_features;
        let observe = || activations.observe_activations(&activated, width);
        let mut stats = times.statistics.time(observe)?;
        let mut output = vec![times.load.time(|| self.load_linear(&plan.output))?];
        if proof.is_some() {
            streams.original.extend(self.copies(&output)?);
        }
        let mut found = ScaleFound::none();
        if self.job.settings.solver.folds()
            && !plan.output.in_float
            && let Fold::Rows { linear, rows, root } = &plan.fold
        {
            let scale = times.solve.time(|| {
                let weights = [output[0].weight.shallow_clone()];
                awq::search_scale(&weights, &stats, self.job.settings.scheme, Some(rows), CLIP)
            })?;
            found = ScaleFound::of(&scale);
            let scale = scale.channel_scale;
            let position = plan.inputs.iter().position(|input| input.name == *linear);
            let position = position.context("a fold into another expert")?;
            let weight = &mut solved[position].weight;
            let divisors = divisors(rows, *root, &scale, weight.out_features());
            weight.divide_rows(&divisors)?;
            self.divide_bias(linear, &divisors);
            if let Some(folded) = streams.folded.get_mut(position) {
                folded.divide_rows(&divisors)?;
            }
            let factors = Tensor::f_from_slice(&scale)?.f_reciprocal()?;
            for activated in &mut activated {
                let factors = factors.f_to_device(activated.device())?;
                let _ = activated.f_mul_(&factors.f_to_kind(activated.kind())?)?;
            }
            stats = awq::scale_stats(stats, &scale)?;
            scale_columns(&mut output, &scale)?;
        }
        if let Some(proof) = proof {
            streams.folded.extend(self.copies(&output)?);
            proof.advance_expert(stage, expert.index, &streams)?;
        }
        energies.extend((times.solve).time(|| output_energies(&output, &stats))?);
        solved.extend((times.solve).time(|| self.solve_as_is(output, stats, &found))?);
        if advance {
            let output = self.running(&plan.output, &solved[plan.inputs.len()].weight)?;
            times.forward.time(|| {
                let block = &self.block;
                activations.add_expert(block, expert.index, &output, selections, &activated)
            })?;
        }
        let mut reports = Vec::new();
        for ((linear, solved), energy) in plan.linears().zip(solved).zip(energies) {
            if let Some(mut report) = self.report(stage, linear, &solved, energy, tokens) {
                report.routed_tokens = Some(expert.n_routed());
                reports.push(report);
            }
            self.write(linear, solved.weight)?;
        }
        Ok(reports)
    }

    /// The linears in memory of their own, to run in float32.
    fn copies(&self, linears: &[FloatLinear]) -> Result<Vec<Linear>> {
        let copies = linears.iter().map(|linear| {
            Ok(Linear {
                weight: linear.weight.f_alias_copy()?,
                bias: self.bias(&linear.name)?,
            })
        });
        copies.collect()
    }
}

impl Expert<'_> {
    fn n_routed(&self) -> usize {
        self.selections.iter().map(Selection::n_routed).sum()
    }
}
