//! Quality: perplexity on a text, and how far a model's predictions moved from the original's.
//!
//! Runs layer by layer like the quantizer, so that a model of any size is measured in bounded memory.

use anyhow::Result;
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::model::{Compute, Head, Layer, State};
use crate::weights::ModelDir;

/// Positions whose logits are held at a time: the vocabulary may be large.
const POSITIONS_PER_CHUNK: usize = 128;

/// Tokens that run through a layer together.
const TOKENS_PER_BATCH: usize = 4096;

/// What was measured, over all positions that have a next token.
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
    /// Runs `model` on `windows` of token ids, all of one length.
    pub fn new(model: &ModelDir, compute: Compute, windows: &[Vec<u32>]) -> Result<Self> {
        Ok(Self {
            hidden: final_hidden(model, compute, windows)?,
            head: model.model.head(model, compute)?,
        })
    }

    /// Logarithms of the next token's probabilities, `[len, vocab]` float32, at the positions from `first` of a window.
    fn log_probs(
        &self,
        compute: Compute,
        window: usize,
        first: usize,
        len: usize,
    ) -> Result<Tensor> {
        let hidden = self.hidden.f_get(window as i64)?;
        let hidden = hidden.f_narrow(0, first as i64, len as i64)?;
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
    windows: &[Vec<u32>],
) -> Result<Evaluation> {
    let mut sums = Sums::default();
    for (index, window) in windows.iter().enumerate() {
        let n_targets = window.len() - 1;
        for first in (0..n_targets).step_by(POSITIONS_PER_CHUNK) {
            let len = POSITIONS_PER_CHUNK.min(n_targets - first);
            let targets: Vec<i64> = window[first + 1..][..len]
                .iter()
                .map(|&id| i64::from(id))
                .collect();
            let targets = Tensor::f_from_slice(&targets)?
                .f_to_device(compute.device)?
                .f_unsqueeze(1)?;
            let log_probs = model.log_probs(compute, index, first, len)?;
            sums.nll -= sum(&log_probs.f_gather(1, &targets, false)?)?;
            sums.n += len;
            if let Some(original) = original {
                let expected = original.log_probs(compute, index, first, len)?;
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
fn final_hidden(dir: &ModelDir, compute: Compute, windows: &[Vec<u32>]) -> Result<Tensor> {
    let seq_len = windows[0].len();
    let batch = (TOKENS_PER_BATCH / seq_len).max(1);
    let places = dir.model.places(compute, seq_len)?;
    let batches = windows.chunks(batch);
    let batches: Vec<Vec<u32>> = batches.map(<[_]>::concat).collect();
    let mut states = (batches.iter())
        .map(|ids| {
            let hidden = dir.model.embed(dir, compute, ids, seq_len, 0)?;
            let hidden = hidden.f_view([(ids.len() / seq_len) as i64, seq_len as i64, -1])?;
            Ok(State::new(hidden.f_to_device(tch::Device::Cpu)?))
        })
        .collect::<Result<Vec<_>>>()?;
    for index in 0..dir.model.config.n_layers {
        let layer = Layer::load(&dir.model, dir, compute, index)?;
        for (ids, waiting) in batches.iter().zip(&mut states) {
            let mut state = waiting.to_device(compute.device)?;
            (dir.model).enter_layer(dir, compute, index, ids, 0, &mut state)?;
            *waiting = layer
                .forward(state, &places, None)?
                .to_device(tch::Device::Cpu)?;
        }
    }
    let hidden: Vec<Tensor> = states.into_iter().map(|state| state.hidden).collect();
    Ok(Tensor::f_cat(&hidden, 0)?)
}
