//! The least a run has to do: operations and bytes of each part, from the model's shape and the calibration alone.
//!
//! Divided by the rates that the machine reaches, they are the floor that the report holds the measured times against.

use std::time::Duration;

use crate::cli::settings::{Settings, Solver};
use crate::device::rates::Rates;
use crate::model::{LayerConfig, Mix, Model, Stage};
use crate::quant::awq;
use crate::report::Phase;

use super::Times;

/// Operations and bytes of a run, a multiply-add counted as two operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Of every linear once a token, and of what mixes tokens.
    pub forward: f64,
    /// Of `XᵀX` of each stage's input, which is symmetric: half of the products.
    pub statistics: f64,
    /// In float32: GPTQ's factorizations and column updates, or AWQ's searches.
    pub solving: f64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

impl Work {
    /// The work of quantizing `model` as `settings` say, on `n_windows` windows. The first `n_finished` layers are only run, though
    /// their bytes count.
    pub fn new(
        model: &Model,
        settings: &Settings,
        n_windows: usize,
        n_finished: usize,
        [bytes_read, bytes_written]: [u64; 2],
    ) -> Self {
        let tokens = (n_windows * settings.seq_len) as f64;
        let mut work = Self {
            forward: 0.0,
            statistics: 0.0,
            solving: 0.0,
            bytes_read,
            bytes_written,
        };
        let top_k = model
            .config
            .experts
            .as_ref()
            .map_or(0, |config| config.top_k);
        for (index, layer) in model.layers.iter().enumerate() {
            if index == n_finished {
                (work.statistics, work.solving) = (0.0, 0.0);
            }
            // How many tokens go through a layer that attends to images, the data decide.
            let tokens = if layer.config.looks { 0.0 } else { tokens };
            for stage in &layer.stages {
                work.add_stage(stage, top_k, settings, tokens);
                if let Some(mixer) = model.config.mixer
                    && stage.mixes.contains(&Mix::Mixer)
                {
                    work.forward += mixer.operations() * tokens;
                }
                if layer.config.attention && stage.mixes.iter().any(|mix| mix.is_attention()) {
                    let (n_heads, dims) = (model.config.n_heads, &layer.config);
                    let products = n_heads * (dims.head_dim + dims.value_head_dim);
                    let pairs = pairs(settings.seq_len, &layer.config);
                    work.forward += 2.0 * products as f64 * pairs * n_windows as f64;
                }
            }
        }
        work
    }

    fn add_stage(&mut self, stage: &Stage, top_k: usize, settings: &Settings, tokens: f64) {
        self.add_linears(stage.out_features(), stage.in_features, settings, tokens);
        let dense: usize = stage.dense.iter().map(|linear| linear.out_features).sum();
        self.forward += 2.0 * (dense * stage.in_features) as f64 * tokens;
        // As if all experts saw the same number of tokens.
        let routed = tokens * top_k as f64 / stage.experts.len().max(1) as f64;
        for expert in &stage.experts {
            let rows = expert.inputs.iter().map(|linear| linear.out_features).sum();
            self.add_linears(rows, stage.in_features, settings, routed);
            let [rows, inp] = expert.output.shape();
            self.add_linears(rows, inp, settings, routed);
        }
    }

    /// Linears of `rows` rows that read the same `in_features` columns.
    fn add_linears(&mut self, rows: usize, in_features: usize, settings: &Settings, tokens: f64) {
        if rows == 0 {
            return;
        }
        let inp = in_features as f64;
        let weights = rows as f64 * inp;
        self.forward += 2.0 * weights * tokens;
        self.statistics += tokens * inp * (inp + 1.0);
        self.solving += match settings.solver {
            Solver::Rtn => 0.0,
            // A Cholesky factor, a third of a cube; in the loop half of the columns change for each one.
            Solver::Gptq(_) => 1.0 / 3.0 * inp.powi(3) + weights * inp,
            Solver::Awq => awq::operations(rows, in_features, settings.scheme),
        };
    }

    /// Least seconds of each part: reading, statistics, solving, forward pass, writing.
    fn ideal_seconds(&self, rates: &Rates) -> [f64; 5] {
        [
            self.bytes_read as f64 / rates.copy,
            self.statistics / rates.forward,
            self.solving / rates.float32,
            self.forward / rates.forward,
            self.bytes_written as f64 / rates.copy,
        ]
    }

    /// Least seconds of the run.
    pub fn seconds(&self, rates: &Rates) -> f64 {
        self.ideal_seconds(rates).iter().sum()
    }

    /// The parts of a run that took `times`, and `whole_seconds` from start to end, beside their floors.
    ///
    /// `written_beside` is what the writing thread took; it did not keep the others waiting, unless it was the slowest.
    pub fn phases(
        &self,
        rates: &Rates,
        times: &Times,
        written_beside: Duration,
        whole_seconds: f64,
    ) -> Vec<Phase> {
        let [read, statistics, solving, forward, write] = self.ideal_seconds(rates);
        let mut phases = [
            ("calibration data", &times.calibration, 0.0, 0.0),
            ("images", &times.images, 0.0, 0.0),
            ("reading weights", &times.load, 0.0, read),
            ("statistics", &times.statistics, self.statistics, statistics),
            ("solving", &times.solve, self.solving, solving),
            ("forward pass", &times.forward, self.forward, forward),
            ("packing and writing", &times.write, 0.0, write),
        ]
        .map(|(name, timer, operations, ideal_seconds)| Phase {
            name,
            operations,
            ideal_seconds,
            seconds: timer.seconds(),
        })
        .to_vec();
        let known: f64 = phases.iter().map(|phase| phase.seconds).sum();
        if let Some(writing) = phases.last_mut() {
            writing.seconds += written_beside.as_secs_f64();
        }
        phases.push(Phase {
            name: "start, end and rest",
            operations: 0.0,
            ideal_seconds: 0.0,
            seconds: whole_seconds - known,
        });
        phases.push(Phase {
            name: "whole run",
            operations: self.forward + self.statistics + self.solving,
            ideal_seconds: self.seconds(rates),
            seconds: whole_seconds,
        });
        phases
    }
}

/// Pairs of a query and a key that it sees, in a window of `n_tokens`.
fn pairs(n_tokens: usize, layer: &LayerConfig) -> f64 {
    let chunk = layer.chunk.unwrap_or(n_tokens).min(n_tokens).max(1);
    let whole = (n_tokens / chunk) as f64 * attended(chunk, layer.window);
    whole + attended(n_tokens % chunk, layer.window)
}

/// Pairs of a query and a key that it sees, in a window of `n_tokens`, where a token sees `limit` at most.
fn attended(n_tokens: usize, limit: Option<usize>) -> f64 {
    let limit = limit.map_or(n_tokens, |limit| limit.min(n_tokens)) as f64;
    let n_tokens = n_tokens as f64;
    limit * (limit + 1.0) / 2.0 + (n_tokens - limit) * limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted() {
        let count = |n_tokens: usize, window: usize| {
            (0..n_tokens).map(|i| (i + 1).min(window)).sum::<usize>() as f64
        };
        for (n_tokens, window) in [(1, 1), (5, 2), (7, 7), (7, 100)] {
            assert_eq!(attended(n_tokens, Some(window)), count(n_tokens, window));
        }
        assert_eq!(attended(7, None), 28.0);
    }
}
