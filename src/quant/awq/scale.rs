//! The search for the scale of the input channels.
//!
//! The paper searches `s = x̄^α`, `x̄` the mean absolute input of a channel. AutoAWQ searches `s = x̄^r / (w̄^(1-r) + 1e-4)`
//! for `r = 0, 0.05 .. 0.95` ("duo scaling"), `w̄` the mean over the rows of a column's absolute weights relative to the
//! largest of their group; this grid has no identity in it. Both are points of the family `s = x̄^a / (w̄^b + 1e-4)`: the
//! search takes the identity and AutoAWQ's line `a + b = 1`, and then moves `a` and `b` apart from each other.

use tch::{Kind, Tensor};

use crate::kernels::ranges::Ranges;
use crate::quant::{Error, InputStats, Scheme};
use crate::tensor::{from_f32, to_f32};

use super::{group_columns, not_finite, place, ranges};

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
/// Rows of a stage that are tried with clipping, at most.
const CLIP_ROWS: usize = 128;
/// The search for ranges in such a trial: it need not find the ranges, only which scale will do best with them.
const CLIP_SWEEPS: &[&[f32]] = &[&[0.85], &[0.92, 1.08]];
/// Elements of a weight that a statistic of it is made from at a time.
const CHUNK_ELEMENTS: i64 = 1 << 20;
/// Smallest scale before normalisation, as published.
const MIN_CHANNEL_SCALE: f32 = 1e-4;

/// The scale of the input channels chosen for one stage: linears that share an input.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleSearch {
    /// `[in]`, finite and positive: the weights' columns are multiplied by it, the operation before is divided by it.
    pub channel_scale: Vec<f32>,
    /// Exponent of the mean absolute input; 0 with `weight_exponent` 0 is the identity.
    pub activation_exponent: f32,
    /// Exponent of the mean relative weight: `1 - activation_exponent` on AutoAWQ's grid.
    pub weight_exponent: f32,
    /// [`output_error`](crate::quant::output_error) of the rounded linears together, with this scale; with `clip` an
    /// estimate, from some rows and a short search.
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
/// scale would do, so the best scale is then nearer to the identity. The trials search ranges too, on a sample
/// of the rows.
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
    let mut best = ScaleSearch {
        channel_scale: Vec::new(),
        activation_exponent: 0.0,
        weight_exponent: 0.0,
        loss: f64::INFINITY,
        loss_identity: f64::INFINITY,
    };
    // All points of a step at once: they share the work on the Gram matrix, and the threads.
    let consider = |best: &mut ScaleSearch, points: &[(f32, f32)]| -> Result<Vec<f64>, Error> {
        let scales: Vec<_> = points.iter().map(|&(a, b)| family.scale(a, b)).collect();
        let losses = objective.losses(&scales)?;
        for ((&(a, b), channel_scale), &loss) in points.iter().zip(scales).zip(&losses) {
            if loss < best.loss {
                best.channel_scale = channel_scale;
                best.activation_exponent = a;
                best.weight_exponent = b;
                best.loss = loss;
            }
        }
        Ok(losses)
    };
    let plan = if clip { CLIP_PLAN } else { PLAIN_PLAN };
    let ratios = (0..plan.grid_steps).map(|step| f32::from(step) / f32::from(plan.grid_steps));
    // The identity first: it is kept where nothing is better.
    let line = std::iter::once((0.0, 0.0)).chain(ratios.map(|ratio| (ratio, 1.0 - ratio)));
    best.loss_identity = consider(&mut best, &line.collect::<Vec<_>>())?[0];
    if !best.loss_identity.is_finite() {
        return Err(not_finite(weights)?);
    }
    for &step in plan.refinement {
        let (a, b) = (best.activation_exponent, best.weight_exponent);
        let mut points = vec![(a + step, b), (a - step, b), (a, b + step), (a, b - step)];
        points.retain(|&(a, b)| a >= 0.0 && b >= 0.0);
        consider(&mut best, &points)?;
    }
    Ok(best)
}

/// Multiplications and additions of [`search_scale`] with `clip`, for linears of `rows` rows together.
pub(super) fn operations(rows: usize, in_features: usize, scheme: Scheme) -> f64 {
    // The identity, the line, and four points around the best for each refinement.
    let points = 1 + usize::from(CLIP_PLAN.grid_steps) + 4 * CLIP_PLAN.refinement.len();
    let tried = rows.min(CLIP_ROWS) * points;
    // Every row's loss without a scale decides which of them are tried.
    rows as f64 * ranges::operations(in_features, scheme, &[])
        + tried as f64 * ranges::operations(in_features, scheme, CLIP_SWEEPS)
}

/// The statistics of `x / channel_scale`, in the memory of those of `x`.
pub fn scale_stats(mut stats: InputStats, channel_scale: &[f32]) -> Result<InputStats, Error> {
    let scale =
        from_f32(channel_scale, &[channel_scale.len()])?.f_to_device(stats.gram.device())?;
    let _ = (stats.gram.f_div_(&scale)?).f_div_(&scale.f_unsqueeze(1)?)?;
    let _ = stats.abs_sum.f_div_(&scale)?;
    Ok(stats)
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

    /// `x̄^a / (w̄^b + 1e-4)`, at least 1e-4, divided by the geometric mean of its extremes; 1 for channels without
    /// activation. All 1 where both exponents are 0.
    fn scale(&self, a: f32, b: f32) -> Vec<f32> {
        if a == 0.0 && b == 0.0 {
            return vec![1.0; self.activation.len()];
        }
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
        for rows in weight.f_split((CHUNK_ELEMENTS / in_features as i64).max(1), 0)? {
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
    /// `[rows, in]`: rows of all the linears, on the device of the statistics.
    sample: Tensor,
    /// How many rows each of them stands for.
    shares: Vec<f64>,
    stats: &'a InputStats,
    scheme: Scheme,
    sweeps: &'static [&'static [f32]],
}

impl<'a> Objective<'a> {
    fn new(
        weights: &[Tensor],
        stats: &'a InputStats,
        scheme: Scheme,
        clip: bool,
    ) -> Result<Self, Error> {
        let placed = weights.iter().map(|weight| place(weight, stats));
        let placed = placed.collect::<Result<Vec<_>, _>>()?;
        let n_rows: Vec<usize> = placed.iter().map(|w| w.size()[0] as usize).collect();
        let total: usize = n_rows.iter().sum();
        let objective = |rows: &[Tensor], shares| -> Result<Self, Error> {
            Ok(Self {
                sample: Tensor::f_cat(rows, 0)?,
                shares,
                stats,
                scheme,
                sweeps: if clip { CLIP_SWEEPS } else { &[] },
            })
        };
        if !clip || total <= CLIP_ROWS {
            return objective(&placed, vec![1.0; total]);
        }
        let mut losses = Vec::with_capacity(total);
        let identity = [vec![1.0; stats.abs_sum.size1()? as usize]];
        for weight in &placed {
            let found = ranges::search(weight, &identity, &stats.gram, scheme, &[])?;
            losses.extend(found.into_iter().flat_map(|found| found.loss_covering));
        }
        if !losses.iter().sum::<f64>().is_finite() {
            return Err(not_finite(weights)?);
        }
        let (rows, shares): (Vec<usize>, Vec<f64>) = sample(&losses, CLIP_ROWS).into_iter().unzip();
        let mut first = 0;
        let mut sampled = Vec::with_capacity(placed.len());
        for (weight, n_rows) in placed.iter().zip(n_rows) {
            let own = rows
                .iter()
                .filter(|row| (first..first + n_rows).contains(*row));
            let own: Vec<i64> = own.map(|row| (row - first) as i64).collect();
            let own = Tensor::f_from_slice(&own)?.f_to_device(weight.device())?;
            sampled.push(weight.f_index_select(0, &own)?);
            first += n_rows;
        }
        objective(&sampled, shares)
    }

    /// `Σ tr(ΔW G ΔWᵀ) / n_tokens` over the linears, `ΔW = Q(W·s)/s − W`, for each scale `s`.
    fn losses(&self, channel_scales: &[Vec<f32>]) -> Result<Vec<f64>, Error> {
        let found = ranges::search(
            &self.sample,
            channel_scales,
            &self.stats.gram,
            self.scheme,
            self.sweeps,
        )?;
        let n_tokens = self.stats.n_tokens.max(1) as f64;
        let loss = |found: Ranges| {
            let losses = found.loss.iter().zip(&self.shares);
            losses.map(|(loss, share)| loss * share).sum::<f64>() / n_tokens
        };
        Ok(found.into_iter().map(loss).collect())
    }
}

/// At most `n` of the rows that have these losses, and how many each stands for: `Σ share·loss` is about the sum of all.
///
/// A row is the likelier taken the more it loses, and the large ones always are: in some linears a few rows make up most
/// of the loss, and evenly spaced samples would miss them.
fn sample(losses: &[f64], n: usize) -> Vec<(usize, f64)> {
    let step = losses.iter().sum::<f64>() / n as f64;
    let mut sampled = Vec::new();
    let mut due = 0.5;
    for (row, loss) in losses.iter().enumerate().filter(|(_, loss)| **loss > 0.0) {
        due += loss / step;
        if due >= 1.0 {
            sampled.push((row, due.floor() * step / loss));
            due = due.fract();
        }
    }
    sampled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_holds_the_large_losses_and_sums_to_all() {
        let losses: Vec<f64> = (0..1000)
            .map(|row| match row % 250 {
                7 => 100.0 + f64::from(row),
                3 => 0.0,
                _ => 1.0 + f64::from(row % 5),
            })
            .collect();
        let total: f64 = losses.iter().sum();
        for n in [1, 10, 64, 500] {
            let rows = sample(&losses, n);
            let estimate: f64 = rows.iter().map(|&(row, share)| share * losses[row]).sum();
            assert!(
                (estimate - total).abs() <= total / n as f64 * 0.51,
                "{n}: {estimate} {total}"
            );
            assert!(
                rows.len() <= n && (n == 1 || rows.len() * 4 >= n),
                "{n}: {}",
                rows.len()
            );
            assert!(rows.iter().all(|(row, _)| losses[*row] > 0.0));
            for (row, loss) in losses.iter().enumerate() {
                let large = *loss >= total / n as f64;
                assert!(
                    !large || rows.iter().any(|(sampled, _)| *sampled == row),
                    "{n}: {row}"
                );
            }
        }
        assert!(sample(&[0.0; 5], 3).is_empty());
    }
}
