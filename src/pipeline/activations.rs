//! The calibration activations between two stages, batch by batch, on the host or on the GPU that computes.

mod experts;

pub use experts::Selection;

use std::ops::Range;

use anyhow::Result;
use tch::{Device, Tensor};

use super::batch::Batch;
use super::fold::{FoldProof, PROBE_TOKENS};
use super::memory::MemoryPlan;
use crate::model::vision::Features;
use crate::model::{
    Block, Compute, Linear, Model, Places, Slot, Stage, StageInput, State, Versions, Weights,
};
use crate::quant::{InputStats, InputSums};
use crate::sight::Shown;

/// All windows' activations, in the dtype of the forward pass.
pub struct Activations<'a> {
    model: &'a Model,
    compute: Compute,
    /// Where tokens stand that no image is among.
    places: Places,
    batches: Vec<Batch>,
    /// The tokens of each batch.
    ids: Vec<Vec<u32>>,
    shown: Shown,
    batch_size: usize,
    /// Whether the MLP's wide activations are made again when they are needed, instead of kept.
    recompute: bool,
    /// Tokens of each window that run together through everything but attention, where that is not all of them.
    slice: Option<usize>,
    /// A solved stage that the states have not been through: every batch goes through it when the next stage reads it.
    ahead: Option<(Stage, Vec<Linear>)>,
    /// Whether what arrives where the stages run is a copy, as on a GPU.
    #[cfg(test)]
    is_apart: bool,
}

impl<'a> Activations<'a> {
    /// Embeds `windows`, all of one length, in the batches of `plan`.
    pub fn embed(
        model: &'a Model,
        weights: &dyn Weights,
        compute: Compute,
        windows: &[Vec<u32>],
        plan: &MemoryPlan,
    ) -> Result<Self> {
        let ids: Vec<Vec<u32>> = windows.chunks(plan.batch_size).map(<[_]>::concat).collect();
        let seq_len = windows[0].len();
        let home = if plan.resident {
            compute.device
        } else {
            Device::Cpu
        };
        let batches = ids.iter().map(|ids| {
            let hidden = model.embed(weights, compute, ids, seq_len, 0)?;
            let shape = [(ids.len() / seq_len) as i64, seq_len as i64, -1];
            let hidden = hidden.f_view(shape)?.f_to_device(home)?;
            Batch::new(hidden, plan.slot_width, compute.device)
        });
        Ok(Self {
            model,
            compute,
            places: model.places(compute, windows[0].len())?,
            batches: batches.collect::<Result<_>>()?,
            ids,
            shown: Shown::new(model, windows.len()),
            batch_size: plan.batch_size,
            recompute: plan.recompute,
            slice: plan.slice,
            ahead: None,
            #[cfg(test)]
            is_apart: false,
        })
    }

    /// Puts what an image became in the place of its tokens' embeddings, as many as `places` are.
    pub fn show(&mut self, window: usize, places: &[usize], features: &Features) -> Result<()> {
        let hidden = residual_stream(&self.batches, self.batch_size, window)?;
        self.shown.show(window, places, features, &hidden)
    }

    /// Adds what images left for the layer that all have been through: behind its stages.
    pub fn leave_layer(&mut self) -> Result<()> {
        let (batches, batch_size) = (&self.batches, self.batch_size);
        (self.shown).leave_layer(|window| residual_stream(batches, batch_size, window))
    }

    /// How many tokens of all batches stand for images.
    pub fn n_image_tokens(&self) -> usize {
        self.shown.n_tokens()
    }

    /// A few tokens of the first window, or where the layer attends to images, of the first one that sees any, from there on.
    pub fn probe(&self, block: &Block) -> Result<Option<(State, Places)>> {
        let (window, start) = match self.shown.first_look() {
            _ if !block.looks() => (0, 0),
            Some(first) => first,
            None => return Ok(None),
        };
        let (batch, row) = (window / self.batch_size, window % self.batch_size);
        let state = self.batches[batch].settled()?;
        let n_tokens = PROBE_TOKENS.min(state.hidden.size()[1] as usize - start);
        let state = state.try_map(|tensor| {
            let window = tensor.f_narrow(0, row as i64, 1)?;
            window.f_narrow(1, start as i64, n_tokens as i64)
        })?;
        let mut places = self.model.places(FoldProof::COMPUTE, n_tokens)?;
        if block.looks() {
            let tokens = start..start + n_tokens;
            let gallery = self.shown.gallery_of(FoldProof::COMPUTE, window, tokens)?;
            places = places.before(gallery);
        }
        Ok(Some((state, places)))
    }

    /// Adds what `layer` takes of its tokens themselves, where it takes anything, and which of them see an image, where it
    /// attends to these: before its stages.
    pub fn enter_layer(&mut self, weights: &dyn Weights, layer: usize) -> Result<()> {
        for (index, (batch, ids)) in self.batches.iter_mut().zip(&self.ids).enumerate() {
            let mut entered = State::new(batch.state().hidden.shallow_clone());
            let versions = entered.versions()?;
            let (windows, _) = extent(index, self.batch_size, &entered.hidden);
            let (model, batch_of) = (self.model, (&ids[..], windows));
            (self.shown).enter_layer(
                model,
                weights,
                self.compute,
                layer,
                batch_of,
                &mut entered,
            )?;
            if entered.filled().next().is_some() {
                batch.store(0, &entered, &versions)?;
            }
        }
        Ok(())
    }

    /// The statistics of what the linears of `stage` read, over all batches: where the layer attends to images, of tokens that
    /// see one, or of the images.
    ///
    /// # Errors
    /// [`crate::quant::Error::NotFinite`] where the forward pass overflowed; libtorch's errors.
    pub fn observe(&self, block: &Block, stage: &Stage) -> Result<InputStats> {
        let mut sums = InputSums::new(stage.in_features, self.compute.device)?;
        for (index, batch) in self.batches.iter().enumerate() {
            if block.is_idle(batch.state()) {
                continue;
            }
            if stage.input == StageInput::Images {
                if let Some(places) = self.places_of(index, block)? {
                    sums.observe(&places.gallery().own_rows()?)?;
                }
                continue;
            }
            for (_, slice) in self.slices(batch.state())? {
                let (slice, _) = self.arrive(block, &slice)?;
                let mut input = block.stage_input(stage, &slice, &self.places)?;
                if block.looks() {
                    let sees = slice.slot(Slot::Sees).f_flatten(0, -1)?;
                    let seeing = sees.f_nonzero()?.f_flatten(0, -1)?;
                    input = input.f_flatten(0, 1)?.f_index_select(0, &seeing)?;
                }
                sums.observe(&input)?;
            }
        }
        self.finished(sums)
    }

    /// Takes all batches through `stage` with its quantized `linears`.
    pub fn advance(&mut self, block: &Block, stage: &Stage, linears: Vec<Linear>) -> Result<()> {
        if self.recompute && stage.remakable {
            self.ahead = Some((stage.clone(), linears));
            return Ok(());
        }
        for index in 0..self.batches.len() {
            let state = self.batches[index].state();
            if block.is_idle(state) {
                continue;
            }
            if stage.is_tokenwise() {
                for (start, slice) in self.slices(state)? {
                    let (slice, arrived) = self.arrive(block, &slice)?;
                    let made = block.run(stage, &linears, slice, &self.places, None)?;
                    self.batches[index].store(start, &made, &arrived)?;
                }
                self.release(index, stage);
            } else {
                let (whole, arrived) = self.arrive(block, state)?;
                let places = self.places_of(index, block)?;
                let places = places.as_ref().unwrap_or(&self.places);
                let made = block.run(stage, &linears, whole, places, None)?;
                self.release(index, stage);
                self.batches[index].store(0, &made, &arrived)?;
            }
        }
        self.ahead = None;
        Ok(())
    }

    fn release(&mut self, index: usize, stage: &Stage) {
        for slot in stage.empties() {
            self.batches[index].release(slot);
        }
    }

    /// Divides the rows of the linear called `name` by `divisors`, which divides the channels of `slot` by `channels`: in
    /// the activations that were made with it, or in the linear that will make them.
    pub fn divide_rows(
        &mut self,
        name: &str,
        divisors: &[f32],
        slot: Slot,
        channels: &[f32],
    ) -> Result<()> {
        if let Some((stage, linears)) = &mut self.ahead {
            let position = (stage.linears.iter()).position(|linear| linear.name == name);
            if let Some(linear) = position.map(|position| &mut linears[position]) {
                linear.divide_rows(divisors)?;
            }
            return Ok(());
        }
        let factors = Tensor::f_from_slice(channels)?.f_reciprocal()?;
        for batch in &self.batches {
            // A layer that attends to images has none where there is no image.
            let Some(activations) = batch.settled()?.find(slot) else {
                continue;
            };
            let _ = activations.shallow_clone().f_mul_(
                &factors
                    .f_to_device(activations.device())?
                    .f_to_kind(activations.kind())?,
            )?;
        }
        Ok(())
    }

    /// The state in slices of tokens that share its memory, and the first token of each.
    fn slices(&self, state: &State) -> Result<Vec<(i64, State)>> {
        let n_tokens = state.hidden.size()[1];
        let slice = self.slice.map_or(n_tokens, |slice| slice as i64);
        (0..n_tokens)
            .step_by(slice as usize)
            .map(|start| {
                let len = slice.min(n_tokens - start);
                let slice = state.try_map(|tensor| tensor.f_narrow(1, start, len))?;
                Ok((start, slice))
            })
            .collect()
    }

    /// A batch or a slice of it where the next stage reads it, on the computing device; and what arrived there.
    fn arrive(&self, block: &Block, state: &State) -> Result<(State, Versions)> {
        let state = state.to_device(self.compute.device)?;
        #[cfg(test)]
        let state = if self.is_apart {
            state.try_map(Tensor::f_alias_copy)?
        } else {
            state
        };
        let versions = state.versions()?;
        let state = match &self.ahead {
            None => state,
            Some((stage, linears)) => block.run(stage, linears, state, &self.places, None)?,
        };
        Ok((state, versions))
    }

    /// Where the tokens of a batch stand, if there are images among them.
    fn places_of(&self, batch: usize, block: &Block) -> Result<Option<Places>> {
        let hidden = &self.batches[batch].state().hidden;
        let (windows, seq_len) = extent(batch, self.batch_size, hidden);
        let looks = block.looks();
        (self.shown).places(self.model, self.compute, windows, seq_len, looks)
    }
}

/// Which windows a batch holds, by its residual stream, and how many tokens each.
fn extent(batch: usize, batch_size: usize, hidden: &Tensor) -> (Range<usize>, usize) {
    let size = hidden.size();
    let first = batch * batch_size;
    (first..first + size[0] as usize, size[1] as usize)
}

/// The residual stream of `window`, `[tokens, hidden]`, to be read and written.
fn residual_stream(batches: &[Batch], batch_size: usize, window: usize) -> Result<Tensor> {
    let (batch, row) = (window / batch_size, window % batch_size);
    Ok(batches[batch].settled()?.hidden.f_get(row as i64)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::memory::slot_width;
    use super::*;
    use crate::model::Layer;
    use crate::model::formula::{FormulaWeights, token_ids, values};
    use tch::Kind;

    /// The statistics of each stage and the state after the layer, with windows of 20 tokens, in no more slots than planned.
    fn through_one_layer(
        model_type: &str,
        recompute: bool,
        slice: Option<usize>,
        is_apart: bool,
    ) -> Vec<Tensor> {
        let config = json!({
            "model_type": model_type, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 1, "num_attention_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": 64, "vocab_size": 64, "num_key_value_heads": 4, "q_lora_rank": 24,
            "kv_lora_rank": 20, "qk_nope_head_dim": 10, "qk_rope_head_dim": 4, "v_head_dim": 12,
            "cross_attention_layers": [0],
        });
        let model = Model::from_config(&config).unwrap();
        let weights = FormulaWeights::new(&model, Kind::Float);
        let compute = Compute {
            device: Device::Cpu,
            kind: Kind::Float,
        };
        let ids = token_ids("windows", 3 * 20, 64);
        let windows: Vec<Vec<u32>> = ids.chunks(20).map(<[u32]>::to_vec).collect();
        let plan = MemoryPlan {
            batch_size: 2,
            recompute,
            slice,
            slot_width: slot_width(&model, recompute),
            resident: false,
            activations: 0,
            stage: 0,
            batch: 0,
        };
        let mut activations =
            Activations::embed(&model, &weights, compute, &windows, &plan).unwrap();
        activations.is_apart = is_apart;
        let layer = Layer::load(&model, &weights, compute, 0).unwrap();
        let looks = layer.block.looks();
        if looks {
            // The second window of the first batch sees nothing.
            for (window, place) in [(0, 4), (2, 7), (2, 8)] {
                let rows = values(&format!("image {window} {place}"), &[6, 32]);
                let features = Features {
                    embeddings: crate::tensor::from_f32(&rows, &[6, 32]).unwrap(),
                    deep: Vec::new(),
                    grid: [1, 1],
                    n_looked_at: Some(4),
                };
                activations.show(window, &[place], &features).unwrap();
            }
        }
        activations.enter_layer(&weights, 0).unwrap();
        let mut found = Vec::new();
        for (stage, linears) in layer.stages {
            let stats = activations.observe(&layer.block, &stage).unwrap();
            let expected = match stage.input {
                StageInput::Images => 3 * 4,
                _ if looks => 16 + 13,
                _ => 60,
            };
            assert_eq!(stats.n_tokens, expected);
            found.extend([stats.gram, stats.abs_sum]);
            activations.advance(&layer.block, &stage, linears).unwrap();
        }
        found
            .extend((activations.batches.iter()).map(|batch| batch.state().hidden.shallow_clone()));
        found
    }

    #[test]
    fn slices_recomputing_and_copies_change_nothing() {
        let ways = [false, true].into_iter().flat_map(|is_apart| {
            let slices = [Some(1), Some(7), Some(20), None].into_iter();
            slices
                .flat_map(move |slice| [false, true].map(|recompute| (recompute, slice, is_apart)))
        });
        let ways: Vec<_> = ways.collect();
        for model_type in ["gpt_neox", "llama", "mllama", "youtu"] {
            let whole = through_one_layer(model_type, false, None, false);
            for &(recompute, slice, is_apart) in &ways {
                let found = through_one_layer(model_type, recompute, slice, is_apart);
                assert_eq!(found.len(), whole.len());
                for (found, whole) in found.iter().zip(&whole) {
                    assert_eq!(found.size(), whole.size());
                    let error = (found - whole).abs().max() / whole.abs().max();
                    let error = error.double_value(&[]);
                    assert!(
                        error < 1e-5,
                        "{model_type} {recompute} {slice:?} {is_apart}: {error:e}"
                    );
                }
            }
        }
    }
}
