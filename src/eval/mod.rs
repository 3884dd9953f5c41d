//! Quality: perplexity on a text, and how far a model's predictions moved from the original's.
//!
//! Runs layer by layer like the quantizer, so that a model of any size is measured in bounded memory.

use anyhow::Result;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::calibration::Windows;
use crate::images::Processor;
use crate::model::{Compute, Head, Layer, State};
use crate::sight::{self, Shown};
use crate::weights::ModelDir;

/// Positions whose logits are held at a time: the vocabulary may be large.
const POSITIONS_PER_CHUNK: usize = 128;

/// Tokens that run through a layer together.
const TOKENS_PER_BATCH: usize = 4096;

/// What was measured, over all positions that have a next token which does not stand for an image.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    pub perplexity: f64,
    /// Mean KL(original || model) of the next-token distributions, in nats; `None` without a reference.
    pub kl_divergence: Option<f64>,
    /// Share of positions where both find the same token likeliest.
    pub top1_agreement: Option<f64>,
    /// The original's own perplexity.
    pub reference_perplexity: Option<f64>,
    /// Positions measured.
    pub tokens: usize,
}

/// What a model predicts for some windows, up to its output projection.
pub struct Predictions {
    /// The residual stream after the last layer, `[windows, seq_len, hidden]`, on the host.
    hidden: Tensor,
    head: Head,
}

impl Predictions {
    /// Runs `model` on `windows` of one length, whose images `processor` prepares.
    pub fn new(
        model: &ModelDir,
        compute: Compute,
        windows: &Windows,
        processor: Option<&Processor>,
    ) -> Result<Self> {
        Ok(Self {
            hidden: final_hidden(model, compute, windows, processor)?,
            head: model.model.head(model, compute)?,
        })
    }

    /// Logarithms of the next token's probabilities, `[positions, vocab]` float32, at these positions of a window.
    fn log_probs(&self, compute: Compute, window: usize, positions: &[i64]) -> Result<Tensor> {
        let hidden = self.hidden.f_get(window as i64)?;
        let hidden = hidden.f_index_select(0, &Tensor::f_from_slice(positions)?)?;
        let logits = self.head.logits(&hidden.f_to_device(compute.device)?)?;
        Ok(logits
            .f_to_kind(Kind::Float)?
            .f_log_softmax(-1, Kind::Float)?)
    }
}

/// Measures `model` on the `windows` that it was run on, and compares it with the `original` on the same ones.
pub fn evaluate(
    model: &Predictions,
    original: Option<&Predictions>,
    compute: Compute,
    windows: &Windows,
    image_token: Option<u32>,
) -> Result<Evaluation> {
    let mut sums = Sums::default();
    for (index, window) in windows.ids.iter().enumerate() {
        // No model learns to predict what stands for an image.
        let is_text = |position: &usize| Some(window[position + 1]) != image_token;
        let positions: Vec<usize> = (0..window.len() - 1).filter(is_text).collect();
        for positions in positions.chunks(POSITIONS_PER_CHUNK) {
            let targets = (positions.iter()).map(|position| i64::from(window[position + 1]));
            let targets: Vec<i64> = targets.collect();
            let positions: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
            let targets = Tensor::f_from_slice(&targets)?
                .f_to_device(compute.device)?
                .f_unsqueeze(1)?;
            let log_probs = model.log_probs(compute, index, &positions)?;
            sums.nll -= sum(&log_probs.f_gather(1, &targets, false)?)?;
            sums.n += positions.len();
            if let Some(original) = original {
                let expected = original.log_probs(compute, index, &positions)?;
                sums.reference_nll -= sum(&expected.f_gather(1, &targets, false)?)?;
                let same = expected
                    .f_argmax(-1, false)?
                    .f_eq_tensor(&log_probs.f_argmax(-1, false)?)?;
                sums.same += sum(&same)?;
                let difference = expected.f_sub(&log_probs)?;
                sums.kl += sum(&expected.f_exp()?.f_mul(&difference)?)?;
            }
        }
    }
    let n = sums.n as f64;
    let compared = original.is_some();
    Ok(Evaluation {
        perplexity: (sums.nll / n).exp(),
        kl_divergence: compared.then_some(sums.kl / n),
        top1_agreement: compared.then_some(sums.same / n),
        reference_perplexity: compared.then(|| (sums.reference_nll / n).exp()),
        tokens: sums.n,
    })
}

#[derive(Default)]
struct Sums {
    nll: f64,
    reference_nll: f64,
    kl: f64,
    same: f64,
    n: usize,
}

fn sum(values: &Tensor) -> Result<f64> {
    Ok(values.f_sum(Kind::Double)?.f_double_value(&[])?)
}

/// The residual stream after the last layer, `[windows, seq_len, hidden]`, on the host.
fn final_hidden(
    dir: &ModelDir,
    compute: Compute,
    windows: &Windows,
    processor: Option<&Processor>,
) -> Result<Tensor> {
    let seq_len = windows.ids[0].len();
    let batch = (TOKENS_PER_BATCH / seq_len).max(1);
    let places = dir.model.places(compute, seq_len)?;
    let ids = sight::without_placeholders(&dir.model, windows);
    let batches: Vec<Vec<u32>> = ids.chunks(batch).map(<[_]>::concat).collect();
    let mut states = (batches.iter())
        .map(|ids| {
            let hidden = dir.model.embed(dir, compute, ids, seq_len, 0)?;
            let hidden = hidden.f_view([(ids.len() / seq_len) as i64, seq_len as i64, -1])?;
            Ok(State::new(hidden.f_to_device(tch::Device::Cpu)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut shown = Shown::new(&dir.model, ids.len());
    if let Some(processor) = processor {
        let show = |window: usize, places: &[usize], features: &_| {
            shown.show(
                window,
                places,
                features,
                &window_of(&states, batch, window)?,
            )
        };
        sight::show(dir, dir, compute, processor, windows, show)?;
    }
    for index in 0..dir.model.config.n_layers {
        let layer = Layer::load(&dir.model, dir, compute, index)?;
        for (number, (ids, waiting)) in batches.iter().zip(&mut states).enumerate() {
            let mut state = waiting.to_device(compute.device)?;
            let windows = number * batch..number * batch + ids.len() / seq_len;
            let batch = (&ids[..], windows.clone());
            shown.enter_layer(&dir.model, dir, compute, index, batch, &mut state)?;
            let looks = layer.block.looks();
            let own = shown.places(&dir.model, compute, windows, seq_len, looks)?;
            *waiting = layer
                .forward(state, own.as_ref().unwrap_or(&places), None)?
                .to_device(tch::Device::Cpu)?;
        }
        shown.leave_layer(|window| window_of(&states, batch, window))?;
    }
    let hidden: Vec<Tensor> = states.into_iter().map(|state| state.hidden).collect();
    Ok(Tensor::f_cat(&hidden, 0)?)
}

/// The residual stream of a window, `[tokens, hidden]`.
fn window_of(states: &[State], batch: usize, window: usize) -> Result<Tensor> {
    let state = &states[window / batch];
    Ok(state.hidden.f_get((window % batch) as i64)?)
}
