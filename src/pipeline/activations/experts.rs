//! What experts read and add, of tokens of all batches.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::super::means::Overflow;
use super::Activations;
use crate::model::{Block, Linear, Slot, Stage};
use crate::quant::{InputStats, InputSums};

/// Tokens of a batch that calibrate an expert.
pub struct Selection {
    batch: usize,
    /// Places in `[B * T]`, int64 where the activations are: first those that were routed to the expert.
    tokens: Tensor,
    n_routed: i64,
}

impl Selection {
    /// How many of them were routed to the expert.
    pub fn n_routed(&self) -> usize {
        self.n_routed as usize
    }
}

impl Activations<'_> {
    /// Calibration tokens of all batches.
    pub fn n_tokens(&self) -> usize {
        let sizes = self.batches.iter().map(|batch| batch.state().hidden.size());
        sizes.map(|size| (size[0] * size[1]) as usize).sum()
    }

    /// The tokens that were routed to an expert and, where they are fewer than `wanted`, of the others as many as are missing,
    /// evenly spread.
    pub fn select(&self, block: &Block, expert: usize, wanted: usize) -> Result<Vec<Selection>> {
        let mut routed = Vec::new();
        let mut others = Vec::new();
        for batch in &self.batches {
            let tokens = block.routed(batch.settled()?, expert)?;
            let n_tokens = batch.state().hidden.size()[..2].iter().product::<i64>();
            let is_other = Tensor::f_ones([n_tokens], (Kind::Bool, tokens.device()))?;
            let _ = is_other.shallow_clone().f_index_fill_(0, &tokens, 0)?;
            routed.push(tokens);
            others.push(is_other.f_nonzero()?.f_flatten(0, -1)?);
        }
        let count = |lists: &[Tensor]| lists.iter().map(Tensor::numel).sum::<usize>();
        let (n_routed, n_others) = (count(&routed), count(&others));
        let missing = wanted.saturating_sub(n_routed).min(n_others);
        let mut selections = Vec::new();
        let mut passed = 0;
        for (batch, (routed, others)) in routed.into_iter().zip(others).enumerate() {
            let own = passed..passed + others.numel();
            passed = own.end;
            // Every `n_others / missing`th of all batches' other tokens.
            let first = (own.start * missing).div_ceil(n_others.max(1));
            let chosen: Vec<i64> = (first..missing)
                .map(|index| index * n_others / missing)
                .take_while(|place| own.contains(place))
                .map(|place| (place - own.start) as i64)
                .collect();
            let chosen = Tensor::f_from_slice(&chosen)?.f_to_device(others.device())?;
            let chosen = others.f_index_select(0, &chosen)?;
            selections.push(Selection {
                batch,
                n_routed: routed.size()[0],
                tokens: Tensor::f_cat(&[routed, chosen], 0)?,
            });
        }
        selections.retain(|selection| selection.tokens.numel() > 0);
        Ok(selections)
    }

    /// How many of the selected tokens stand for images.
    pub fn n_selected_image_tokens(&self, selections: &[Selection]) -> Result<usize> {
        let mut count = 0;
        if self.shown.n_tokens() == 0 {
            return Ok(count);
        }
        for selection in selections {
            let seq_len = self.batches[selection.batch].state().hidden.size()[1];
            let first = selection.batch * self.batch_size;
            let is_image = |token: &&i64| {
                let window = first + (**token / seq_len) as usize;
                self.shown.is_image(window, **token % seq_len)
            };
            let tokens = Vec::<i64>::try_from(&selection.tokens)?;
            count += tokens.iter().filter(is_image).count();
        }
        Ok(count)
    }

    /// The statistics of what an expert reads of its tokens, `in_features` wide.
    pub fn observe_expert(
        &self,
        block: &Block,
        stage: &Stage,
        expert: usize,
        selections: &[Selection],
    ) -> Result<InputStats> {
        let mut sums = InputSums::new(stage.in_features, self.compute.device)?;
        for selection in selections {
            sums.observe(&self.expert_input(block, stage, expert, selection)?)?;
        }
        self.finished(sums)
    }

    /// What the last linear of an expert reads, through its first `linears`; of each selection, where the activations are.
    pub fn expert_activations(
        &self,
        block: &Block,
        stage: &Stage,
        expert: usize,
        linears: &[Linear],
        selections: &[Selection],
    ) -> Result<Vec<Tensor>> {
        let activations = selections.iter().map(|selection| {
            let x = self.expert_input(block, stage, expert, selection)?;
            let activated = block.expert_activations(stage, expert, linears, &x)?;
            let home = self.batches[selection.batch].state().hidden.device();
            Ok(activated.f_to_device(home)?)
        });
        activations.collect()
    }

    /// The statistics of `activations`, `in_features` wide.
    pub fn observe_activations(
        &self,
        activations: &[Tensor],
        in_features: usize,
    ) -> Result<InputStats> {
        let mut sums = InputSums::new(in_features, self.compute.device)?;
        for activations in activations {
            sums.observe(&activations.f_to_device(self.compute.device)?)?;
        }
        self.finished(sums)
    }

    /// Adds what the last linear of an expert makes of the `activations` of the tokens that were routed to it.
    pub fn add_expert(
        &mut self,
        block: &Block,
        expert: usize,
        output: &Linear,
        selections: &[Selection],
        activations: &[Tensor],
    ) -> Result<()> {
        for (selection, activations) in selections.iter().zip(activations) {
            let batch = &mut self.batches[selection.batch];
            batch.open(Slot::Added)?;
            let routed = activations.f_narrow(0, 0, selection.n_routed)?;
            let output = output.forward_tokens(&routed.f_to_device(self.compute.device)?)?;
            let tokens = selection.tokens.f_narrow(0, 0, selection.n_routed)?;
            let state = batch.settled()?;
            block.add_expert(state, expert, &tokens, &output, state.slot(Slot::Added))?;
        }
        Ok(())
    }

    /// Gives what all experts added to the residual stream.
    pub fn finish_experts(&mut self, block: &Block, stage: &Stage) -> Result<()> {
        for batch in &mut self.batches {
            batch.open(Slot::Added)?;
            let state = batch.state().to_device(self.compute.device)?;
            let arrived = state.versions()?;
            let made = block.finish_experts(stage, state)?;
            batch.store(0, &made, &arrived)?;
            for slot in stage.empties() {
                batch.release(slot);
            }
        }
        Ok(())
    }

    fn expert_input(
        &self,
        block: &Block,
        stage: &Stage,
        expert: usize,
        selection: &Selection,
    ) -> Result<Tensor> {
        let state = self.batches[selection.batch].settled()?;
        let (tokens, device) = (&selection.tokens, self.compute.device);
        Ok(block.expert_input(stage, state, expert, tokens, device)?)
    }

    pub(super) fn finished(&self, sums: InputSums) -> Result<InputStats> {
        sums.finish().context(Overflow {
            kind: self.compute.kind,
        })
    }
}
