//! The search for the scale of the input channels.
//!
//! The paper searches `s = x̄^α`, `x̄` the mean absolute input of a channel. AutoAWQ searches `s = x̄^r / (w̄^(1-r) + 1e-4)`
//! for `r = 0, 0.05 .. 0.95` ("duo scaling"), `w̄` the mean over the rows of a column's absolute weights relative to the
//! largest of their group; this grid has no identity in it. Both are points of the family `s = x̄^a / (w̄^b + 1e-4)`: the
//! search takes the identity and AutoAWQ's line `a + b = 1`, and then moves `a` and `b` apart from each other.

use tch::{Kind, Tensor};

use crate::quant::{Error, InputStats, Scheme, output_error};
use crate::tensor::{from_f32, to_f32};

use super::rounding::{Rounding, SWEEPS};
use super::{chunk_elements, group_columns, not_finite, place};

/// How many scales are tried.
struct Plan {
    /// Points `a = 0, 1/n ..`, `b = 1 - a`.
    grid_steps: u8,
    /// Steps around the best point so far, in each exponent.
    refinement: &'static [f32],
}

/// AutoAWQ's grid, refined.
const PLAIN_PLAN: Plan = Plan {
    grid_steps: 20,
    refinement: &[0.1, 0.05, 0.025],
};
/// With clipping the minimum is flat, and each trial dear.
const CLIP_PLAN: Plan = Plan {
    grid_steps: 10,
    refinement: &[0.05],
};
/// Rows of each linear that are tried with clipping: about so many, where it has as many.
const CLIP_ROWS: i64 = 128;
/// Sweeps of the search for ranges in such a trial.
const CLIP_SWEEPS: usize = 2;
/// Smallest scale before normalisation, as published.
const MIN_CHANNEL_SCALE: f32 = 1e-4;
/// The scale of the input channels chosen for one stage: linears that share an input.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleSearch {
    /// `[in]`, finite and positive: the weights' columns are multiplied by it, the operation before is divided by it.
    pub channel_scale: Vec<f32>,
    /// Exponent of the mean absolute input; 0 with `weight_exponent` 0 is the identity.
    pub activation_exponent: f32,
    /// Exponent of the mean relative weight: `1 - activation_exponent` on the published grid.
    pub weight_exponent: f32,
    /// [`output_error`] of the rounded linears together, with this scale; with `clip` an estimate from some rows.
    pub loss: f64,
    /// The same without a scale. Never below `loss`.
    pub loss_identity: f64,
}

/// Chooses the scale with which rounding the stage's `weights` changes its output least.
///
/// `weights` are the linears that read one input, each `[out_i, in]` float32; `stats` are that input's. `tie` gives each
/// channel a class, `0..`, where several must share one scale: under grouped-query attention, o's channels in all query
/// heads of one key-value head stem from one row of v. The group size must divide `in`. Works on the device of `stats`.
///
/// `clip` says whether ranges will be searched afterwards ([`quantize`](super::quantize)): that does much of what a large
/// scale would do, so the best scale is then nearer to the identity. The trials search ranges too, on a sample of the rows.
///
/// # Errors
/// [`Error::NotFinite`] if the weights are not finite; libtorch's errors, out of memory among them.
pub fn search_scale(
    weights: &[Tensor],
    stats: &InputStats,
    scheme: Scheme,
    tie: Option<&[usize]>,
    clip: bool,
) -> Result<ScaleSearch, Error> {
    let objective = Objective::new(weights, stats, scheme, clip)?;
    let family = Family::new(weights, stats, scheme, tie)?;
    let identity = vec![1.0; family.activation.len()];
    let loss_identity = objective.loss(&identity)?;
    if !loss_identity.is_finite() {
        return Err(not_finite(weights)?);
    }
    let mut best = ScaleSearch {
        channel_scale: identity,
        activation_exponent: 0.0,
        weight_exponent: 0.0,
        loss: loss_identity,
        loss_identity,
    };
    let consider = |best: &mut ScaleSearch, a: f32, b: f32| -> Result<(), Error> {
        let channel_scale = family.scale(a, b);
        let loss = objective.loss(&channel_scale)?;
        if loss < best.loss {
            *best = ScaleSearch {
                channel_scale,
                activation_exponent: a,
                weight_exponent: b,
                loss,
                loss_identity,
            };
        }
        Ok(())
    };
    let plan = if clip { CLIP_PLAN } else { PLAIN_PLAN };
    for step in 0..plan.grid_steps {
        let ratio = f32::from(step) / f32::from(plan.grid_steps);
        consider(&mut best, ratio, 1.0 - ratio)?;
    }
    for &step in plan.refinement {
        for (da, db) in [(step, 0.0), (-step, 0.0), (0.0, step), (0.0, -step)] {
            let (a, b) = (best.activation_exponent + da, best.weight_exponent + db);
            if a >= 0.0 && b >= 0.0 {
                consider(&mut best, a, b)?;
            }
        }
    }
    Ok(best)
}

/// The statistics of `x / channel_scale`, given those of `x`.
pub fn scale_stats(stats: &InputStats, channel_scale: &[f32]) -> Result<InputStats, Error> {
    let scale =
        from_f32(channel_scale, &[channel_scale.len()])?.f_to_device(stats.gram.device())?;
    let mut gram = stats.gram.f_div(&scale)?;
    let _ = gram.f_div_(&scale.f_unsqueeze(1)?)?;
    Ok(InputStats {
        gram,
        abs_sum: stats.abs_sum.f_div(&scale)?,
        n_tokens: stats.n_tokens,
    })
}

/// The scales among which the search chooses.
struct Family {
    /// `[in]`: mean absolute input, the mean of its class where channels are tied. 0 for channels that no token used.
    activation: Vec<f32>,
    /// `[in]`: mean relative absolute weight, likewise.
    weight: Vec<f32>,
}

impl Family {
    fn new(
        weights: &[Tensor],
        stats: &InputStats,
        scheme: Scheme,
        tie: Option<&[usize]>,
    ) -> Result<Self, Error> {
        let n_tokens = stats.n_tokens.max(1) as f32;
        let mut activation = to_f32(&stats.abs_sum)?;
        for value in &mut activation {
            *value /= n_tokens;
        }
        let mut weight = relative_magnitude(weights, activation.len(), scheme)?;
        if let Some(classes) = tie {
            average_classes(&mut activation, classes);
            average_classes(&mut weight, classes);
        }
        Ok(Self { activation, weight })
    }

    /// `x̄^a / (w̄^b + 1e-4)`, at least 1e-4, divided by the geometric mean of its extremes; 1 for channels without activation.
    fn scale(&self, a: f32, b: f32) -> Vec<f32> {
        let mut scale: Vec<f32> = self
            .activation
            .iter()
            .zip(&self.weight)
            .map(|(x, w)| (x.powf(a) / (w.powf(b) + 1e-4)).max(MIN_CHANNEL_SCALE))
            .collect();
        let used = || self.activation.iter().map(|&x| x > 0.0);
        let (min, max) = (scale.iter().zip(used()))
            .filter(|(_, used)| *used)
            .fold((f32::INFINITY, 0f32), |(min, max), (&s, _)| {
                (min.min(s), max.max(s))
            });
        let middle = (min * max).sqrt();
        for (s, used) in scale.iter_mut().zip(used()) {
            *s /= middle;
            if !used || !s.is_finite() || *s <= 0.0 {
                *s = 1.0;
            }
        }
        scale
    }
}

/// w̄: the mean over all rows of all `weights` of `|w| / (max |w| of its group + 1e-6)`, `[in]`.
fn relative_magnitude(
    weights: &[Tensor],
    in_features: usize,
    scheme: Scheme,
) -> Result<Vec<f32>, Error> {
    let columns = group_columns(scheme, in_features as i64);
    let mut sum = vec![0f64; in_features];
    let mut n_rows = 0;
    for weight in weights {
        for rows in weight.f_split(chunk_rows(weight), 0)? {
            let magnitude = rows
                .f_abs()?
                .f_view([-1, in_features as i64 / columns, columns])?;
            let largest = magnitude.f_amax(2, true)?.f_add_scalar(1e-6)?;
            let relative = magnitude
                .f_div(&largest)?
                .f_sum_dim_intlist(0, false, Kind::Float)?;
            for (sum, value) in sum.iter_mut().zip(to_f32(&relative)?) {
                *sum += f64::from(value);
            }
        }
        n_rows += weight.size()[0];
    }
    Ok(sum
        .into_iter()
        .map(|sum| (sum / n_rows as f64) as f32)
        .collect())
}

/// Replaces each value by the mean of its class.
fn average_classes(values: &mut [f32], classes: &[usize]) {
    assert_eq!(values.len(), classes.len(), "a class for each channel");
    let mut sums = vec![(0f64, 0u32); classes.iter().max().map_or(0, |&class| class + 1)];
    for (&value, &class) in values.iter().zip(classes) {
        sums[class].0 += f64::from(value);
        sums[class].1 += 1;
    }
    for (value, &class) in values.iter_mut().zip(classes) {
        let (sum, count) = sums[class];
        *value = (sum / f64::from(count)) as f32;
    }
}

/// The loss that the search minimises.
struct Objective<'a> {
    samples: Vec<Sample>,
    stats: &'a InputStats,
    scheme: Scheme,
    clip: bool,
}

/// The rows of a linear that the search looks at.
struct Sample {
    /// `[rows, in]`.
    weight: Tensor,
    /// How many of the linear's rows each of them stands for.
    share: f64,
}

impl Sample {
    fn new(weight: &Tensor, stats: &InputStats, clip: bool) -> Result<Self, Error> {
        let out_features = weight.size()[0];
        // An odd step: heads have an even number of rows, which must not be met at the same place in each.
        let step = match out_features / CLIP_ROWS {
            step if clip && step > 1 => step - (1 - step % 2),
            _ => 1,
        };
        let weight = place(&weight.f_slice(0, None, None, step)?, stats)?;
        let share = out_features as f64 / weight.size()[0] as f64;
        Ok(Self { weight, share })
    }
}

impl<'a> Objective<'a> {
    fn new(
        weights: &[Tensor],
        stats: &'a InputStats,
        scheme: Scheme,
        clip: bool,
    ) -> Result<Self, Error> {
        let samples = weights
            .iter()
            .map(|weight| Sample::new(weight, stats, clip));
        Ok(Self {
            samples: samples.collect::<Result<_, _>>()?,
            stats,
            scheme,
            clip,
        })
    }

    /// `Σ tr(ΔW G ΔWᵀ) / n_tokens` over the linears, `ΔW = Q(W·s)/s − W`.
    fn loss(&self, channel_scale: &[f32]) -> Result<f64, Error> {
        let scale = from_f32(channel_scale, &[channel_scale.len()])?
            .f_to_device(self.stats.gram.device())?;
        let scaled_stats = if self.clip {
            Some(scale_stats(self.stats, channel_scale)?)
        } else {
            None
        };
        let mut loss = 0.0;
        for Sample { weight, share } in &self.samples {
            for rows in weight.f_split(chunk_rows(weight), 0)? {
                let scaled = rows.f_mul(&scale)?;
                let mut rounding = Rounding::covering(&scaled, self.scheme)?;
                if let Some(scaled_stats) = &scaled_stats {
                    rounding.search(&scaled, &scaled_stats.gram, &SWEEPS[..CLIP_SWEEPS])?;
                }
                let _ = rounding.delta.f_div_(&scale)?;
                loss += output_error(&rounding.delta, self.stats)? * share;
            }
        }
        Ok(loss)
    }
}

/// Rows of `weight` to work on at a time.
fn chunk_rows(weight: &Tensor) -> i64 {
    (chunk_elements(weight.device()) / weight.size()[1]).max(1)
}
