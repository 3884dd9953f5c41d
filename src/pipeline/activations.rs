//! The calibration activations between two stages, batch by batch, on the host.

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use crate::model::{Block, Compute, Linear, Mix, Model, Role, Rope, Stage, State, Weights};
use crate::quant::{InputStats, InputSums};

/// All windows' activations, in the dtype of the forward pass.
pub struct Activations {
    compute: Compute,
    rope: Rope,
    /// One a batch.
    states: Vec<State>,
    /// Whether the MLP's wide activations are made again when they are needed, instead of kept.
    recompute: bool,
    /// A solved stage that the states have not been through: every batch goes through it when the next stage reads it.
    ahead: Option<(&'static Stage, Vec<Linear>)>,
}

impl Activations {
    /// Embeds `windows`, all of one length, in batches of `batch_size`.
    pub fn embed(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
        windows: &[Vec<u32>],
        batch_size: usize,
        recompute: bool,
    ) -> Result<Self> {
        let states = windows.chunks(batch_size).map(|batch| {
            let ids: Vec<u32> = batch.iter().flatten().copied().collect();
            let hidden = model.embed(weights, compute, &ids)?;
            let shape = [batch.len() as i64, batch[0].len() as i64, -1];
            Ok(State::new(hidden.f_view(shape)?.f_to_device(Device::Cpu)?))
        });
        Ok(Self {
            compute,
            rope: model.rope(compute, windows[0].len())?,
            states: states.collect::<Result<_>>()?,
            recompute,
            ahead: None,
        })
    }

    /// The residual stream of the first batch, `[B, T, hidden]`.
    pub fn first_hidden(&self) -> &Tensor {
        &self.states[0].hidden
    }

    /// The statistics of what the linears of `stage` read, over all batches.
    ///
    /// # Errors
    /// [`crate::quant::Error::NotFinite`] where the forward pass overflowed; libtorch's errors.
    pub fn observe(&self, block: &Block, stage: &Stage, in_features: usize) -> Result<InputStats> {
        let mut sums = InputSums::new(in_features, self.compute.device)?;
        for state in &self.states {
            let state = self.arrive(block, state)?;
            sums.observe(&block.stage_input(stage, &state)?)?;
        }
        sums.finish().with_context(|| {
            let kind = self.compute.kind;
            format!("the model overflows {kind:?}; try --dtype float32")
        })
    }

    /// Takes all batches through `stage` with its quantized `linears`.
    pub fn advance(
        &mut self,
        block: &Block,
        stage: &'static Stage,
        linears: Vec<Linear>,
    ) -> Result<()> {
        if self.recompute && stage.mix == Mix::GatedMlp {
            self.ahead = Some((stage, linears));
            return Ok(());
        }
        for index in 0..self.states.len() {
            let state = self.arrive(block, &self.states[index])?;
            let state = self.through(block, stage, &linears, state)?;
            self.states[index] = to_device(&state, Device::Cpu)?;
        }
        self.ahead = None;
        Ok(())
    }

    /// Divides the rows of `role`'s output by `divisors`, where the next stage's channels are `channels` times these:
    /// in the activations that were made with it, or in the linear that will make them.
    pub fn divide_rows(&mut self, role: Role, divisors: &[f32], channels: &[f32]) -> Result<()> {
        if let Some((stage, linears)) = &mut self.ahead {
            let divisors = Tensor::f_from_slice(divisors)?.f_to_device(self.compute.device)?;
            let position = stage.linears.iter().position(|&linear| linear == role);
            if let Some(linear) = position.map(|position| &mut linears[position]) {
                let kind = linear.weight.kind();
                let divided = |tensor: &Tensor, divisors: &Tensor| {
                    (tensor.f_to_kind(Kind::Float)?.f_div(divisors)?).f_to_kind(kind)
                };
                linear.weight = divided(&linear.weight, &divisors.f_unsqueeze(1)?)?;
                let bias = linear.bias.as_ref();
                linear.bias = bias.map(|bias| divided(bias, &divisors)).transpose()?;
            }
            return Ok(());
        }
        let factors = Tensor::f_from_slice(channels)?.f_reciprocal()?;
        for carried in (self.states.iter_mut()).filter_map(|state| state.carried.as_mut()) {
            let _ = carried.f_mul_(&factors.f_to_kind(carried.kind())?)?;
        }
        Ok(())
    }

    /// A batch where the next stage reads it, on the computing device.
    fn arrive(&self, block: &Block, state: &State) -> Result<State> {
        let state = to_device(state, self.compute.device)?;
        match &self.ahead {
            None => Ok(state),
            Some((stage, linears)) => self.through(block, stage, linears, state),
        }
    }

    fn through(
        &self,
        block: &Block,
        stage: &Stage,
        linears: &[Linear],
        state: State,
    ) -> Result<State> {
        let x = block.stage_input(stage, &state)?;
        let outputs = linears
            .iter()
            .map(|linear| linear.forward(&x))
            .collect::<Result<Vec<_>, _>>()?;
        drop(x);
        Ok(block.mix(stage, outputs, state, &self.rope, None)?)
    }
}

/// The state on `device`; shares memory where it is there already.
fn to_device(state: &State, device: Device) -> Result<State> {
    let carried = state.carried.as_ref();
    Ok(State {
        hidden: state.hidden.f_to_device(device)?,
        carried: carried
            .map(|carried| carried.f_to_device(device))
            .transpose()?,
    })
}
