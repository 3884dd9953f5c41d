//! GPTQ: rounds a weight column by column, and lets the columns still in float make good each column's error.
//!
//! Frantar et al. 2022, arXiv:2210.17323. A [`Factor`] of the input's Gram matrix is made once a stage, then [`solve`]
//! quantizes each linear of the stage with it. What differs from the published script: scales are rounded to float16
//! before they are used; a group's grid is fitted to weights that have seen every update so far, also where several
//! groups share a block of columns; and that fit can weigh its errors by what they will cost.

mod block;
mod factor;
mod order;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;

use rayon::prelude::*;
use tch::{Kind, Tensor};

pub use factor::Factor;
pub use order::ActOrder;

use super::{Error, Grid, QuantizedLinear, Scheme};
use crate::kernels::{self, vectorized};
use crate::tensor;
use block::{Block, Row};

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
    /// The grid of one group; an error of 1 in a weight costs its `importance`.
    #[inline(always)]
    fn fit(&self, weights: &[f32], importance: &[f32], scheme: Scheme) -> Grid {
        let full_range = self.grid_fit == GridFit::SearchFullRange;
        match self.grid_fit {
            GridFit::Cover => Grid::covering(weights.iter().copied(), scheme),
            GridFit::Search | GridFit::SearchFullRange => {
                Grid::searched(weights, importance, scheme, full_range)
            }
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

/// Quantizes `weight`, `[out, in]` float32, on the device where the Gram matrix of `factor` was.
///
/// The column loop runs on the CPU, rows in parallel. The rest of the work is one product a block of columns, on the
/// device. Panics if `factor` was made for another width, group size or order.
///
/// # Errors
/// [`Error::NotFinite`] if the weight holds NaN or infinity.
pub fn solve(
    weight: &Tensor,
    factor: &Factor,
    scheme: Scheme,
    settings: &Settings,
) -> Result<Solved, Error> {
    let (out_features, in_features) = weight.size2()?;
    let (out_features, in_features) = (out_features as usize, in_features as usize);
    factor.assert_made_for(in_features, scheme, settings);
    let order = &factor.order;
    let weight = factor.without_dead(weight)?;
    let current = weight.f_index_select(1, &order.index(weight.device())?)?;

    let n_groups = scheme.n_groups(in_features);
    let mut grids = if order.contiguous {
        // Each is fitted when its group starts.
        vec![Grid::covering([], scheme); out_features * n_groups]
    } else {
        grids_of_groups(&weight, factor, scheme, settings)?
    };
    let set = kernels::chosen();
    let mut codes = vec![0; out_features * in_features];
    let originals = tensor::to_f32(&current)?;
    let mut loss = 0.0;
    for positions in order.blocks() {
        let (start, len) = (positions.start as i64, positions.len() as i64);
        let group_end = order
            .group_starting_at(positions.start)
            .map_or(0, |group| group.end);
        let span = group_end.max(positions.end) - positions.start;
        let mut rows = tensor::to_f32(&current.f_narrow(1, start, span as i64)?)?;
        let mut errors = vec![0.0; out_features * positions.len()];
        let upper = factor.upper.f_narrow(0, start, len)?;
        let block = Block {
            order,
            positions: positions.clone(),
            upper: &tensor::to_f32(&upper.f_narrow(1, start, len)?)?,
            importance: &factor.importance,
            damping: factor.damping,
            scheme,
            settings,
        };
        let losses: Vec<f64> = (rows.par_chunks_mut(span))
            .zip(originals.par_chunks(in_features))
            .zip(errors.par_chunks_mut(positions.len()))
            .zip(grids.par_chunks_mut(n_groups))
            .zip(codes.par_chunks_mut(in_features))
            .map(|((((row, original), errors), grids), codes)| {
                let row = Row {
                    block: &block,
                    weights: row,
                    original: &original[positions.clone()],
                    errors,
                    grids,
                    codes,
                };
                vectorized(set, row)
            })
            .collect();
        // Summed in the order of rows, so that the result does not depend on the threads.
        loss += losses.iter().sum::<f64>();

        let (end, rest) = (start + len, in_features as i64 - start - len);
        if rest > 0 {
            let errors = tensor::from_f32(&errors, &[out_features, positions.len()])?;
            let errors = errors.f_to_device(current.device())?;
            let mut later = current.f_narrow(1, end, rest)?;
            let _ = later.f_addmm_(&errors, &upper.f_narrow(1, end, rest)?)?;
        }
    }

    let g_idx = order.g_idx.clone();
    let quantized = QuantizedLinear::new(out_features, in_features, scheme, codes, &grids, g_idx);
    if !loss.is_finite() {
        let finite = weight
            .f_isfinite()?
            .f_sum(Kind::Int64)?
            .f_int64_value(&[])?;
        return Err(Error::NotFinite {
            what: "the weight",
            count: out_features * in_features - finite as usize,
        });
    }
    Ok(Solved {
        quantized,
        loss: loss.max(0.0) / factor.n_tokens.max(1) as f64,
    })
}

/// Grids `[out, n_groups]` fitted to the weight as it is, before any column is rounded.
fn grids_of_groups(
    weight: &Tensor,
    factor: &Factor,
    scheme: Scheme,
    settings: &Settings,
) -> Result<Vec<Grid>, Error> {
    let in_features = factor.importance.len();
    let mut importance = vec![0.0; in_features];
    for (column, value) in factor.order.columns.iter().zip(&factor.importance) {
        importance[*column] = *value;
    }
    let columns = scheme.group_columns(in_features);
    let rows = tensor::to_f32(weight)?;
    let grids = rows.par_chunks(in_features).flat_map_iter(|row| {
        let groups = row.chunks(columns).zip(importance.chunks(columns));
        groups.map(|(weights, importance)| settings.fit(weights, importance, scheme))
    });
    Ok(grids.collect())
}
