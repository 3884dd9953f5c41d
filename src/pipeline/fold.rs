//! Folding AWQ's channel scales into the operation before a stage, and the proof that this changes nothing.

use anyhow::Result;
use half::f16;
use tch::{Kind, Tensor};

use super::solve::FloatLinear;
use crate::model::{Block, Compute, Fold, Linear, Model, Places, Stage, State, Weights};

/// Largest relative change of a layer's float32 output that counts as rounding.
const TOLERANCE: f64 = 1e-4;

/// Tokens of a calibration window that the proof runs on, at most.
pub const PROBE_TOKENS: usize = 32;

/// A norm's `weight` after its gain `weight + offset` was divided by `scale`, as float16 will store it, and the scale that
/// this division really applied.
///
/// The second makes the fold exact although the first is rounded: the stage's columns are multiplied by it.
pub fn divide_norm(weight: &[f32], offset: f32, scale: &[f32]) -> (Vec<f32>, Vec<f32>) {
    weight
        .iter()
        .zip(scale)
        .map(|(&weight, &scale)| {
            let gain = weight + offset;
            let stored = f16::from_f32(gain / scale - offset).to_f32();
            let applied = gain / (stored + offset);
            if gain == 0.0 {
                (weight, scale)
            } else if applied.is_normal() && stored.is_finite() {
                (stored, applied)
            } else {
                // Out of float16's range: leave this channel as it is.
                (weight, 1.0)
            }
        })
        .unzip()
}

/// Two float32 streams of a few tokens through one layer: the original weights, and the folded ones.
///
/// AWQ's folds are identities on paper; a family whose norm, gate or head layout differs from what its row says
/// breaks them silently. Each layer therefore proves its folds before its tensors are final.
pub struct FoldProof<'a> {
    compute: Compute,
    original: (Block, State),
    folded: (Block, State),
    /// The folded stream's earlier stages: the states they started from and their outputs, for folds into their rows.
    earlier: Vec<(&'a Stage, State, Vec<Tensor>)>,
    places: Places,
}

/// An expert's linears in float32, as they are and as scales were folded through them.
#[derive(Default)]
pub struct Streams {
    pub original: Vec<Linear>,
    pub folded: Vec<Linear>,
}

impl<'a> FoldProof<'a> {
    /// Where and in what it computes.
    pub const COMPUTE: Compute = Compute {
        device: tch::Device::Cpu,
        kind: Kind::Float,
    };

    /// Starts from a part of the layer's real input, whose tokens stand at `places`.
    pub fn new(
        model: &Model,
        weights: &dyn Weights,
        layer: usize,
        input: &State,
        places: Places,
    ) -> Result<Self> {
        let compute = Self::COMPUTE;
        let probe = input.try_map(|tensor| {
            let tensor = tensor.f_to_device(compute.device)?;
            tensor.f_to_kind(compute.kind)
        })?;
        Ok(Self {
            compute,
            original: (
                Block::load(model, weights, compute, layer)?,
                probe.shallow_clone(),
            ),
            folded: (Block::load(model, weights, compute, layer)?, probe),
            earlier: Vec::new(),
            places,
        })
    }

    /// Takes the original stream through `stage`, given its float linears.
    pub fn advance_original(
        &mut self,
        stage: &Stage,
        linears: &[FloatLinear],
        biases: &[Option<Tensor>],
    ) -> Result<()> {
        let (block, state) = &mut self.original;
        let outputs = run(
            stage,
            block,
            (state, &self.places),
            linears,
            biases,
            self.compute,
        )?;
        *state = block.mix(stage, outputs, state.shallow_clone(), &self.places, None)?;
        Ok(())
    }

    /// Takes the folded stream through `stage`, given its linears after their columns were scaled.
    ///
    /// `real` is the block that was folded into, `divisors` what the fold's source rows were divided by; none where nothing was
    /// folded into them.
    pub fn advance_folded(
        &mut self,
        stage: &'a Stage,
        scaled: &[FloatLinear],
        biases: &[Option<Tensor>],
        real: &Block,
        divisors: &[f32],
    ) -> Result<()> {
        let (block, state) = &mut self.folded;
        match &stage.fold {
            Fold::Norm(site) => {
                block.norm_mut(*site).set(real.norm(*site), self.compute)?;
                for linear in &stage.dense {
                    let weight = &real.dense(&linear.name).weight;
                    block.dense_mut(&linear.name).weight =
                        weight.f_to_device(self.compute.device)?;
                }
            }
            Fold::Rows { linear, .. } if !divisors.is_empty() => {
                // The stage of that linear again, with its rows divided: it fills the slot that this stage reads.
                for (earlier, before, outputs) in &mut self.earlier {
                    let position = (earlier.linears.iter()).position(|other| other.name == *linear);
                    if let (Some(position), Some(slot)) = (position, stage.input.slot()) {
                        let divisors = Tensor::f_from_slice(divisors)?;
                        outputs[position] = outputs[position].f_div(&divisors)?;
                        let (outputs, before) = (copies(outputs)?, before.shallow_clone());
                        let again = block.mix(earlier, outputs, before, &self.places, None)?;
                        state.set_slot(slot, Some(again.slot(slot).shallow_clone()));
                    }
                }
            }
            Fold::Rows { .. } | Fold::None => {}
        }
        let outputs = run(
            stage,
            block,
            (state, &self.places),
            scaled,
            biases,
            self.compute,
        )?;
        let before = state.shallow_clone();
        let kept = copies(&outputs)?;
        *state = block.mix(stage, outputs, state.shallow_clone(), &self.places, None)?;
        self.earlier.push((stage, before, kept));
        Ok(())
    }

    /// Takes both streams through an expert of `stage`.
    pub fn advance_expert(
        &mut self,
        stage: &Stage,
        expert: usize,
        streams: &Streams,
    ) -> Result<()> {
        let (block, state) = &mut self.original;
        block.run_expert(stage, expert, &streams.original, state)?;
        let (block, state) = &mut self.folded;
        block.run_expert(stage, expert, &streams.folded, state)?;
        Ok(())
    }

    /// Ends a stage of experts.
    pub fn finish_experts(&mut self, stage: &Stage) -> Result<()> {
        for (block, state) in [&mut self.original, &mut self.folded] {
            *state = block.finish_experts(stage, state.shallow_clone())?;
        }
        Ok(())
    }

    /// Compares the layer's outputs: the largest difference over the largest value.
    pub fn finish(self) -> Result<f64> {
        let (original, folded) = (&self.original.1.hidden, &self.folded.1.hidden);
        let largest = original.f_abs()?.f_max()?.f_double_value(&[])?;
        let difference = original
            .f_sub(folded)?
            .f_abs()?
            .f_max()?
            .f_double_value(&[])?;
        let relative = difference / largest.max(f64::MIN_POSITIVE);
        anyhow::ensure!(
            relative <= TOLERANCE,
            "folding AWQ's scales changed the layer's float output by {relative:.2e} of its size, more than \
             {TOLERANCE:.0e}: the family's description does not fit this model; please report it, and use --gptq meanwhile"
        );
        Ok(relative)
    }
}

fn copies(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let copies = tensors.iter().map(Tensor::f_alias_copy);
    Ok(copies.collect::<Result<_, _>>()?)
}

fn run(
    stage: &Stage,
    block: &Block,
    (state, places): (&State, &Places),
    linears: &[FloatLinear],
    biases: &[Option<Tensor>],
    compute: Compute,
) -> Result<Vec<Tensor>> {
    let linears = linears.iter().zip(biases).map(|(linear, bias)| {
        let bias = bias.as_ref().map(|bias| bias.f_to_kind(compute.kind));
        Ok(Linear {
            weight: linear.weight.f_to_kind(compute.kind)?,
            bias: bias.transpose()?,
        })
    });
    let linears = linears.collect::<Result<Vec<_>>>()?;
    let input = block.stage_input(stage, state, places)?;
    Ok(block.outputs(stage, &linears, &input)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rounded_division_is_undone_exactly_by_the_scale_it_applied() {
        let weight = [1.0f32, 0.3, -2.7, 0.0, 1e-6, 60000.0];
        let scale = [3.0f32, 0.7, 1.1, 2.0, 100.0, 1e-3];
        for offset in [0.0, 1.0] {
            let (stored, applied) = divide_norm(&weight, offset, &scale);
            for ((stored, applied), weight) in stored.iter().zip(&applied).zip(weight) {
                let (gain, folded) = (weight + offset, stored + offset);
                assert!((folded * applied - gain).abs() <= 2.0 * f32::EPSILON * gain.abs());
                assert!(applied.is_finite() && *applied > 0.0);
            }
        }
        // Both ends of float16's range keep their channel unscaled.
        let (stored, applied) = divide_norm(&weight, 0.0, &scale);
        assert_eq!((stored[4], applied[4]), (1e-6, 1.0));
        assert_eq!((stored[5], applied[5]), (60000.0, 1.0));
    }
}
