//! One stage's linears from float to codes: which solver, with what folded where.

use std::time::Instant;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::quant::{self, InputStats, QuantizedLinear, Scheme, awq, gptq};
use crate::report::{AwqReport, GptqReport};

/// Whether AWQ searches the ranges of the grids. The published code leaves out q and k; with the error measured over the
/// whole Gram matrix every linear gains.
pub const CLIP: bool = true;

/// A linear in float32 on the host, `[out, in]`.
pub struct FloatLinear {
    /// Module name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    pub weight: Tensor,
    /// Whether it stays so.
    pub in_float: bool,
}

/// A linear's weight as it is stored, before it is packed.
pub enum SolvedWeight {
    Codes(QuantizedLinear),
    /// `[out, in]` float32 on the host, to be stored in float16.
    Float(Tensor),
}

impl SolvedWeight {
    pub fn out_features(&self) -> usize {
        match self {
            Self::Codes(quantized) => quantized.out_features,
            Self::Float(weight) => weight.size()[0] as usize,
        }
    }

    /// Divides each row by its divisor.
    pub fn divide_rows(&mut self, divisors: &[f32]) -> Result<()> {
        match self {
            Self::Codes(quantized) => quantized.divide_rows(divisors),
            Self::Float(weight) => {
                let divisors = Tensor::f_from_slice(divisors)?.f_unsqueeze(1)?;
                *weight = weight.f_div(&divisors)?;
            }
        }
        Ok(())
    }

    /// What readers of the file compute with, `[out, in]` float32 on the host.
    pub fn dequantize(&self) -> Result<Tensor> {
        Ok(match self {
            Self::Codes(quantized) => quantized.dequantize_tensor()?,
            Self::Float(weight) => weight.f_to_kind(Kind::Half)?.f_to_kind(Kind::Float)?,
        })
    }
}

/// What a solver made of one linear.
pub struct Solved {
    pub weight: SolvedWeight,
    /// Mean over tokens of the squared change of the output.
    pub error: f64,
    pub seconds: f64,
    pub awq: Option<AwqReport>,
    pub gptq: Option<GptqReport>,
}

/// What the search for a stage's channel scale found, for the report.
#[derive(Clone)]
pub struct ScaleFound {
    scale: String,
    gain: f64,
}

impl ScaleFound {
    /// Of a stage whose scale cannot be folded anywhere.
    pub fn none() -> Self {
        Self {
            scale: "none".to_owned(),
            gain: 1.0,
        }
    }

    /// Of a search.
    pub fn of(search: &awq::ScaleSearch) -> Self {
        let scale = match (search.activation_exponent, search.weight_exponent) {
            (0.0, 0.0) => "1".to_owned(),
            (activation, weight) => format!("x^{activation:.2}/w^{weight:.2}"),
        };
        Self {
            scale,
            gain: ratio(search.loss, search.loss_identity),
        }
    }
}

/// Leaves those of `linears` that stay in float as they are, and has `solver` make codes of the others; in their order.
pub fn all_but_float(
    linears: Vec<FloatLinear>,
    solver: impl FnOnce(Vec<FloatLinear>) -> Result<Vec<Solved>>,
) -> Result<Vec<Solved>> {
    let in_float: Vec<bool> = linears.iter().map(|linear| linear.in_float).collect();
    let (float, quantized): (Vec<_>, Vec<_>) =
        linears.into_iter().partition(|linear| linear.in_float);
    let mut solved = if quantized.is_empty() {
        Vec::new().into_iter()
    } else {
        solver(quantized)?.into_iter()
    };
    let mut float = float.into_iter().map(|linear| Solved {
        weight: SolvedWeight::Float(linear.weight),
        error: 0.0,
        seconds: 0.0,
        awq: None,
        gptq: None,
    });
    let mut next = |in_float| {
        if in_float {
            float.next()
        } else {
            solved.next()
        }
    };
    Ok(in_float.into_iter().filter_map(&mut next).collect())
}

/// Rounds each linear to its nearest codes.
pub fn rtn(linears: &[FloatLinear], stats: &InputStats, scheme: Scheme) -> Result<Vec<Solved>> {
    linears
        .iter()
        .map(|linear| {
            let start = Instant::now();
            let (out, inp) = linear.weight.size2()?;
            let values = crate::tensor::to_f32(&linear.weight)?;
            let quantized = quant::rtn(&values, out as usize, inp as usize, scheme);
            let delta = quantized.dequantize_tensor()?.f_sub(&linear.weight)?;
            Ok(Solved {
                error: quant::output_error(&delta, stats)?,
                weight: SolvedWeight::Codes(quantized),
                seconds: start.elapsed().as_secs_f64(),
                awq: None,
                gptq: None,
            })
        })
        .collect()
}

/// GPTQ: one factorization for the stage, and its linears all at once. Their seconds are shares of the stage's.
pub fn gptq(
    linears: Vec<FloatLinear>,
    stats: InputStats,
    scheme: Scheme,
    settings: &gptq::Settings,
) -> Result<Vec<Solved>> {
    let start = Instant::now();
    let factor = gptq::Factor::new(stats, scheme, settings)?;
    let weights = linears.into_iter().map(|linear| linear.weight).collect();
    let found = gptq::solve(weights, &factor, scheme, settings)?;
    let seconds = start.elapsed().as_secs_f64();
    let rows: usize = found.iter().map(|one| one.quantized.out_features).sum();
    let solved = found.into_iter().map(|one| Solved {
        seconds: seconds * one.quantized.out_features as f64 / rows as f64,
        weight: SolvedWeight::Codes(one.quantized),
        error: one.loss,
        awq: None,
        gptq: Some(GptqReport {
            damp: factor.damp_used,
            dead_columns: factor.n_dead,
        }),
    });
    Ok(solved.collect())
}

/// AWQ's second half: clips and rounds linears whose columns already carry `scale`; `stats` are those of the input over it.
pub fn awq(
    scaled: &[FloatLinear],
    stats: &InputStats,
    found: &ScaleFound,
    search_seconds: f64,
    scheme: Scheme,
) -> Result<Vec<Solved>> {
    scaled
        .iter()
        .map(|linear| {
            let start = Instant::now();
            let solved = awq::quantize(&linear.weight, stats, scheme, CLIP)
                .with_context(|| linear.name.clone())?;
            Ok(Solved {
                error: solved.loss,
                seconds: search_seconds / scaled.len() as f64 + start.elapsed().as_secs_f64(),
                awq: Some(AwqReport {
                    scale: found.scale.clone(),
                    scale_gain: found.gain,
                    clip_gain: ratio(solved.loss, solved.loss_unclipped),
                }),
                weight: SolvedWeight::Codes(solved.quantized),
                gptq: None,
            })
        })
        .collect()
}

fn ratio(value: f64, base: f64) -> f64 {
    if base > 0.0 { value / base } else { 1.0 }
}
