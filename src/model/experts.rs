//! A layer's experts: each runs on the tokens that were routed to it.

use super::{Block, Error, Linear, Mix, NormSite, Role, Slot, Stage, State};
use tch::{Device, Tensor};

impl Block {
    /// The tokens that go through an expert, as places in `[B * T]`: int64, ascending.
    pub fn routed(&self, state: &State, expert: usize) -> Result<Tensor, Error> {
        let weights = (state.slot(Slot::Routes)).f_select(-1, expert as i64)?;
        Ok(weights.f_flatten(0, -1)?.f_nonzero()?.f_flatten(0, -1)?)
    }

    /// What an expert reads of these `tokens`, `[tokens, hidden]` on `device`.
    pub fn expert_input(
        &self,
        stage: &Stage,
        state: &State,
        expert: usize,
        tokens: &Tensor,
        device: Device,
    ) -> Result<Tensor, Error> {
        let rows = state.hidden.f_flatten(0, 1)?.f_index_select(0, tokens)?;
        let x = self.normed(stage.input, &rows.f_to_device(device)?)?;
        if !self.router().weighs_input() {
            return Ok(x);
        }
        let weights = weights_of(state, expert, tokens)?;
        // Of tokens that were not routed to it nothing would be left.
        let weights = weights.f_masked_fill(&weights.f_eq(0)?, 1)?;
        Ok(x.f_mul(&weights.f_to_device(device)?)?)
    }

    /// From an expert's input to what its last linear reads, through its first `linears`.
    pub fn expert_activations(
        &self,
        stage: &Stage,
        expert: usize,
        linears: &[Linear],
        x: &Tensor,
    ) -> Result<Tensor, Error> {
        let mut outputs = Vec::new();
        for (plan, linear) in stage.experts[expert].inputs.iter().zip(linears) {
            outputs.push((plan.parts[0].0, linear.forward_tokens(x)?));
        }
        let mut take = |role| {
            let position = outputs.iter().position(|output| output.0 == role);
            position.map(|position| outputs.swap_remove(position).1)
        };
        let gate = take(Role::Gate);
        let up = take(Role::Up).expect("an expert has this");
        match gate {
            Some(gate) => self.gated(gate, &up),
            None => self.activated(up),
        }
    }

    /// Adds what an expert makes of `tokens`, `[tokens, hidden]`, to `added` `[B, T, hidden]`, weighed as the router says.
    pub fn add_expert(
        &self,
        state: &State,
        expert: usize,
        tokens: &Tensor,
        output: &Tensor,
        added: &Tensor,
    ) -> Result<(), Error> {
        let mut output = output.shallow_clone();
        if !self.router().weighs_input() {
            let weights = weights_of(state, expert, tokens)?.f_to_device(output.device())?;
            output = output.f_mul(&weights)?;
        }
        let output = output.f_to_device(added.device())?;
        // A view: the slot's own memory.
        let mut rows = added.f_view([-1, *added.size().last().expect("a width")])?;
        let _ = rows.f_index_add_(0, tokens, &output)?;
        Ok(())
    }

    /// Runs one expert: its inputs' linears and its output's, in this order.
    pub fn run_expert(
        &self,
        stage: &Stage,
        expert: usize,
        linears: &[Linear],
        state: &mut State,
    ) -> Result<(), Error> {
        let added = match state.take_slot(Slot::Added) {
            Some(added) => added,
            None => state.hidden.f_zeros_like()?.f_contiguous()?,
        };
        let tokens = self.routed(state, expert)?;
        if tokens.numel() > 0 {
            let x = self.expert_input(stage, state, expert, &tokens, added.device())?;
            let (output, inputs) = linears.split_last().expect("an expert has linears");
            let activated = self.expert_activations(stage, expert, inputs, &x)?;
            let output = output.forward_tokens(&activated)?;
            self.add_expert(state, expert, &tokens, &output, &added)?;
        }
        state.set_slot(Slot::Added, Some(added));
        Ok(())
    }

    /// Runs a stage of experts: `linears` are those of the first, then those of the second, and so on.
    pub(super) fn run_experts(
        &self,
        stage: &Stage,
        linears: &[Linear],
        mut state: State,
    ) -> Result<State, Error> {
        let per_expert = linears.len() / stage.experts.len();
        for (expert, linears) in linears.chunks(per_expert).enumerate() {
            self.run_expert(stage, expert, linears, &mut state)?;
        }
        self.finish_experts(stage, state)
    }

    /// What follows the last expert of a stage: the residual stream takes what was added.
    pub fn finish_experts(&self, stage: &Stage, mut state: State) -> Result<State, Error> {
        for mix in &stage.mixes {
            match mix {
                Mix::Experts(norm) => {
                    let mut added = state.take_slot(Slot::Added).expect("an expert has run");
                    state.set_slot(Slot::Routes, None);
                    if let Some(norm) = self.find_norm(NormSite::OfExperts) {
                        added = norm.forward(&added)?;
                    }
                    if let Some(beside) = state.take_slot(Slot::BesideExperts) {
                        added = added.f_add(&beside)?;
                    }
                    self.add_to_residual(added, *norm, &mut state)?;
                }
                Mix::LayerScale => self.scale_layer(&mut state)?,
                _ => unreachable!("no linears of a stage of experts"),
            }
        }
        Ok(state)
    }
}

/// What the router gives an expert of these tokens, `[tokens, 1]`.
fn weights_of(state: &State, expert: usize, tokens: &Tensor) -> Result<Tensor, Error> {
    let weights = (state.slot(Slot::Routes)).f_select(-1, expert as i64)?;
    let weights = weights.f_flatten(0, -1)?.f_index_select(0, tokens)?;
    Ok(weights.f_unsqueeze(1)?)
}
