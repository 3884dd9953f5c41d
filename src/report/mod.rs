//! What a run tells: one serializable [`Report`], written as quantization_report.json and, in words, as
//! quantization_report.log; and the progress shown meanwhile ([`progress`]).

pub mod progress;
pub mod text;

use serde::{Deserialize, Serialize};

use crate::device::monitor::Readings;
use crate::device::rates::Rates;

/// Everything worth knowing about one quantization run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub nibble: String,
    pub libtorch: String,
    /// The command line.
    pub command: Vec<String>,
    pub model: ModelReport,
    pub settings: SettingsReport,
    pub calibration: CalibrationReport,
    pub device: String,
    pub compute_dtype: String,
    pub batch_size: usize,
    /// Whether the MLP's activations were made twice instead of kept, for lack of memory.
    pub recompute: bool,
    /// Tokens of a window that ran through the linears together, where for lack of memory that was not all of them.
    pub slice: Option<usize>,
    /// Layers that an earlier run, which was interrupted, had finished; times and memory are those of this run alone.
    pub resumed_layers: usize,
    /// In the order in which they were quantized.
    pub linears: Vec<LinearReport>,
    /// What the model sees with, where that is quantized too.
    pub tower: Option<TowerReport>,
    /// Warnings that the run gave.
    pub warnings: Vec<String>,
    /// Whole run, process start to the last byte written.
    pub seconds: f64,
    /// The parts of the run in their order, the whole run last.
    pub phases: Vec<Phase>,
    pub rates: Rates,
    pub input_bytes: u64,
    pub output_bytes: u64,
    /// What this process and the GPU held over the run.
    pub memory: Readings,
}

#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    pub directory: String,
    pub model_type: String,
    pub layers: usize,
    pub parameters: u64,
    pub quantized_parameters: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct SettingsReport {
    pub method: String,
    pub format: String,
    pub bits: u8,
    /// -1: the whole row.
    pub group_size: i64,
    pub symmetric: bool,
    pub act_order: Option<String>,
    pub damp_percent: Option<f64>,
    /// Regular expressions on the names of linears that stay in float, and of those that alone are quantized.
    pub ignore: Vec<String>,
    pub only: Vec<String>,
    pub seed: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct CalibrationReport {
    pub source: String,
    pub documents: usize,
    pub windows: usize,
    pub windows_requested: usize,
    pub seq_len: usize,
    /// All of them, those of images among them.
    pub tokens: usize,
    /// How many times an image was shown.
    pub images: usize,
    /// Tokens that stand for images.
    pub image_tokens: usize,
    /// Each window begins with this token.
    pub bos: Option<u32>,
}

/// One part of the work over all layers, or the whole run: what it took, beside the least that it could have taken.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: &'static str,
    /// Arithmetic that the part cannot do without, a multiply-add counted as two; 0 where there is none to count.
    pub operations: f64,
    /// `operations` and bytes over [`Report::rates`]; 0 where there is nothing to count.
    pub ideal_seconds: f64,
    pub seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinearReport {
    pub name: String,
    pub layer: usize,
    pub stage: String,
    pub out_features: usize,
    pub in_features: usize,
    /// Mean over tokens of the squared change of the output, summed over its features.
    pub error: f64,
    /// `error` over the mean square of the output itself.
    pub relative_error: f64,
    /// Calibration tokens that the linear saw.
    pub tokens: usize,
    /// Those of them that stand for images.
    pub image_tokens: usize,
    /// Those of all that were routed to it, where it is an expert's.
    pub routed_tokens: Option<usize>,
    pub seconds: f64,
    pub awq: Option<AwqReport>,
    pub gptq: Option<GptqReport>,
}

/// What became of the linears of a vision tower, all rounded to nearest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TowerReport {
    pub linears: usize,
    /// The sum of all weights' squared changes over that of their squares.
    pub relative_weight_error: f64,
    /// Linears whose width the group size does not divide.
    pub in_float: Vec<String>,
}

/// What AWQ's searches found, for the stage that the linear belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AwqReport {
    /// The candidate that won: "identity", or the grid and its exponent.
    pub scale: String,
    /// The stage's error with that scale over the error without scaling, before clipping.
    pub scale_gain: f64,
    /// This linear's error with clipping over that without.
    pub clip_gain: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GptqReport {
    /// Fraction of the mean diagonal that the factorization needed.
    pub damp: f64,
    /// Input columns that no token used.
    pub dead_columns: usize,
}

impl Report {
    /// The report in words.
    pub fn to_text(&self) -> String {
        text::render(self)
    }

    /// The parts of the run against their floors, as a table.
    pub fn floor_table(&self) -> String {
        text::floor_table(self)
    }

    /// Mean over linears of the relative output error.
    pub fn mean_relative_error(&self) -> f64 {
        let sum: f64 = self
            .linears
            .iter()
            .map(|linear| linear.relative_error)
            .sum();
        sum / self.linears.len().max(1) as f64
    }
}

/// Bytes in a unit that a person reads.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Seconds, or minutes and hours of them, as a person reads them.
pub fn human_seconds(seconds: f64) -> String {
    match seconds {
        ..100.0 => format!("{seconds:.1} s"),
        ..6000.0 => format!("{:.0} minutes", seconds / 60.0),
        _ => format!("{:.1} hours", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_readable() {
        for (seconds, text) in [(1.26, "1.3 s"), (150.0, "2 minutes"), (9000.0, "2.5 hours")] {
            assert_eq!(human_seconds(seconds), text);
        }
    }

    #[test]
    fn bytes_are_readable() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 30, "5.0 GiB"),
        ] {
            assert_eq!(human_bytes(bytes), text);
        }
    }
}
