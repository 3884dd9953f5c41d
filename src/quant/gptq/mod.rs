//! GPTQ: rounds a weight column by column, and lets the columns still in float make good each column's error.
//!
//! Frantar et al. 2022, arXiv:2210.17323. A [`Factor`] of the input's Gram matrix is made once a stage, then [`solve`]
//! quantizes the linears of the stage with it, all at once: their rows do not depend on each other. What differs from the published script: scales are rounded to float16
//! before they are used; a group's grid is fitted to weights that have seen every update so far, also where several
//! groups share a block of columns; and that fit can weigh its errors by what they will cost.

mod factor;
mod order;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

pub use factor::Factor;
pub use order::ActOrder;

use super::{Error, Grid, QuantizedLinear, Scheme};
use crate::kernels::{self, Fit, columns};
use crate::tensor;

/// Parts of a group's range that the search for its grid tries.
const SEARCH_STEPS: u8 = 8;
/// One over the number of bits, times this, is cut off the range in each step of that search.
const SEARCH_STEP: f32 = 0.16;

/// Columns that a thread transposes together: neighbours share the cache lines that are read, and each fills one.
const TRANSPOSED_TOGETHER: usize = 32;

/// How to solve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    pub act_order: ActOrder,
    /// Added to the diagonal of the Gram matrix, as a fraction of its mean.
    pub damp: f64,
    pub grid_fit: GridFit,
}

/// How the grid of a group is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GridFit {
    /// It covers all weights of the group, as in the paper.
    Cover,
    /// Of the grids over the range and shrunk ranges, the one with the least expected loss.
    Search,
    /// As `Search`, and symmetric grids may use all codes, for which about half of the scales are negative.
    SearchFullRange,
}

impl Settings {
    /// The parts of a range that are tried.
    fn parts(&self, scheme: Scheme) -> Vec<f32> {
        let step = SEARCH_STEP / f32::from(scheme.bits);
        let parts = (0..SEARCH_STEPS).map(|shrunk| 1.0 - step * f32::from(shrunk));
        match self.grid_fit {
            GridFit::Cover => Vec::new(),
            GridFit::Search | GridFit::SearchFullRange => parts.collect(),
        }
    }
}

/// A quantized linear, and what that costs.
#[derive(Debug)]
pub struct Solved {
    pub quantized: QuantizedLinear,
    /// What [`super::output_error`] gives for the change of the weight: the squared output error, mean over the
    /// calibration tokens, summed over the output features.
    pub loss: f64,
}

/// Quantizes `weights`, each `[out, in]` float32, on the device where the Gram matrix of `factor` was.
///
/// The column loop runs on the CPU, rows in parallel. The rest of the work is one product a block of columns, on the
/// device. Besides what is returned, two float32 copies of all weights live at once: `weights` are dropped early.
/// Panics if `factor` was made for another width, group size or order.
///
/// # Errors
/// [`Error::NotFinite`] if a weight holds NaN or infinity.
pub fn solve(
    weights: Vec<Tensor>,
    factor: &Factor,
    scheme: Scheme,
    settings: &Settings,
) -> Result<Vec<Solved>, Error> {
    let in_features = factor.order.columns.len();
    factor.assert_made_for(in_features, scheme, settings);
    let order = &factor.order;
    let sizes = (weights.iter())
        .map(|weight| Ok(weight.size2()?.0 as usize))
        .collect::<Result<Vec<_>, Error>>()?;
    let rows: usize = sizes.iter().sum();
    let padded = rows.next_multiple_of(columns::ROWS);
    let originals = transposed(&weights, factor, padded)?;
    drop(weights);
    let device = factor.root.device();
    let carried = Tensor::f_zeros([in_features as i64, padded as i64], (Kind::Float, device))?;
    let originals = tensor::f32_slice(&originals);

    let set = kernels::chosen();
    let n_groups = scheme.n_groups(in_features);
    let parts = settings.parts(scheme);
    let fit = Fit {
        levels: scheme.levels(),
        parts: &parts,
        full_range: settings.grid_fit == GridFit::SearchFullRange,
    };
    let mut rounded = columns::Rounded::new(rows, in_features, n_groups);
    if !order.contiguous {
        // No group ever starts: all grids are fitted to the weights as they are.
        let groups = order.positions_of_groups(n_groups);
        rounded.fit(set, originals, &factor.importance, &groups, &fit);
    }
    for positions in order.blocks() {
        let starting: Vec<_> = (positions.clone())
            .filter_map(|position| order.group_starting_at(position))
            .map(|group| group.start - positions.start..group.end - positions.start)
            .collect();
        let len = positions.len();
        let span = starting.iter().map(|group| group.end).fold(len, usize::max);
        let (first, after) = (positions.start as i64, positions.end as i64);
        // Nothing is carried into the first block, and its groups see their weights as they are.
        let side = if first == 0 { len } else { span };
        let factors = factor.inverse_of_block(positions.start..positions.start + side)?;
        let sums = on_host(&carried.f_narrow(0, first, span as i64)?)?;
        let block = columns::Block {
            originals: &originals[positions.start * padded..][..span * padded],
            carried: (first > 0).then(|| tensor::f32_slice(&sums)),
            factors: &tensor::to_f32(&factors.f_tr()?)?,
            importance: &factor.importance[positions.start..][..span],
            columns: &order.columns[positions.clone()],
            groups: &order.groups[positions.clone()],
            starting: &starting,
            damping: factor.damping,
        };
        let changes = rounded.round(set, &block, &fit);
        let rest = in_features as i64 - after;
        if rest > 0 {
            let changes = tensor::from_f32(&changes, &[len, padded])?;
            let changes = changes.f_to_device(carried.device())?;
            let root = factor.root.f_narrow(0, first, len as i64)?;
            let mut later = carried.f_narrow(0, after, rest)?;
            let _ = later.f_addmm_(&root.f_narrow(1, after, rest)?.f_tr()?, &changes)?;
        }
    }
    drop(carried);

    let mut first = 0;
    let solved = sizes.iter().map(|&out_features| {
        let rows = first..first + out_features;
        first = rows.end;
        // Summed in the order of rows, so that the result does not depend on the threads.
        let loss = rounded.losses()[rows.clone()].iter().sum::<f64>();
        if !loss.is_finite() {
            let columns = originals.chunks_exact(padded);
            let bad = columns.flat_map(|column| &column[rows.clone()]);
            return Err(Error::NotFinite {
                what: "the weight",
                count: bad.filter(|weight| !weight.is_finite()).count(),
            });
        }
        let codes = &rounded.codes()[rows.start * in_features..rows.end * in_features];
        let grids: Vec<Grid> = rows
            .flat_map(|row| (0..n_groups).map(move |group| (row, group)))
            .map(|(row, group)| rounded.grid(row, group))
            .map(|(scale, zero_point)| Grid::new(scale, zero_point, scheme))
            .collect();
        let (codes, g_idx) = (codes.to_vec(), order.g_idx.clone());
        Ok(Solved {
            quantized: QuantizedLinear::new(
                out_features,
                in_features,
                scheme,
                codes,
                &grids,
                g_idx,
            ),
            loss: loss.max(0.0) / factor.n_tokens.max(1) as f64,
        })
    });
    solved.collect()
}

/// `weights` side by side in the order of solving, `[in, padded]` on the host, their dead columns and the padding 0: what
/// dead columns are does not matter, and 0 widens no grid.
fn transposed(weights: &[Tensor], factor: &Factor, padded: usize) -> Result<Tensor, Error> {
    let order = &factor.order.columns;
    let width = order.len();
    let weights = weights.iter().map(on_host);
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&[f32]> = (weights.iter())
        .flat_map(|weight| tensor::f32_slice(weight).chunks_exact(width))
        .collect();
    let mut all = tensor::Exclusive::zeros(&[width, padded])?;
    let lines = all.values().par_chunks_mut(TRANSPOSED_TOGETHER * padded);
    let columns = order.par_chunks(TRANSPOSED_TOGETHER);
    let dead = factor.dead.par_chunks(TRANSPOSED_TOGETHER);
    (lines.zip(columns).zip(dead)).for_each(|((lines, columns), dead)| {
        for (at, row) in rows.iter().enumerate() {
            let lines = lines.chunks_exact_mut(padded);
            for ((line, column), dead) in lines.zip(columns).zip(dead) {
                if !dead {
                    line[at] = row[*column];
                }
            }
        }
    });
    Ok(all.into_tensor())
}

/// The tensor itself if it is on the host, else a copy.
fn on_host(tensor: &Tensor) -> Result<Tensor, tch::TchError> {
    tensor.f_to_device(Device::Cpu)?.f_contiguous()
}
