//! GPTQ's column loop inside one block of columns, one row at a time. Rows do not depend on each other.

use std::ops::Range;

use super::Settings;
use super::order::Order;
use crate::kernels::Vectorized;
use crate::quant::{Grid, Scheme};

/// Width of the chunks in which a row is updated.
const LANES: usize = 16;

/// What the rows of one block have in common.
pub(super) struct Block<'a> {
    pub order: &'a Order,
    pub positions: Range<usize>,
    /// U's rows and columns of this block, row-major.
    pub upper: &'a [f32],
    /// `U_jj⁻²` of all positions.
    pub importance: &'a [f32],
    /// What was added to the diagonal of G.
    pub damping: f64,
    pub scheme: Scheme,
    pub settings: &'a Settings,
}

/// One row of a block. Running it rounds the row, and returns its part of `tr(ΔW G ΔWᵀ)`.
pub(super) struct Row<'a> {
    pub block: &'a Block<'a>,
    /// The weights from the block's start to the end of the last group that starts in it, with all updates so far.
    pub weights: &'a mut [f32],
    /// The block's weights without any update.
    pub original: &'a [f32],
    /// One a position: receives `(rounded - weight) / U_jj`.
    pub errors: &'a mut [f32],
    /// One a group: receives the grids of the groups that start here.
    pub grids: &'a mut [Grid],
    /// One a column of the whole row: receives the codes.
    pub codes: &'a mut [u8],
}

impl Vectorized for Row<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Self {
            block,
            weights: row,
            original,
            errors,
            grids,
            codes,
        } = self;
        let (start, len) = (block.positions.start, block.positions.len());
        let mut loss = 0.0;
        for (i, upper) in block.upper.chunks_exact(len).enumerate() {
            let position = start + i;
            let grid = &mut grids[block.order.groups[position]];
            if let Some(group) = block.order.group_starting_at(position) {
                let weights = &row[i..group.end - start];
                let importance = &block.importance[group];
                *grid = block.settings.fit(weights, importance, block.scheme);
            }
            let (code, value) = grid.round(row[i]);
            codes[block.order.columns[position]] = code;
            // The reciprocal does not wait for the row, as a division of the difference would.
            let error = (value - row[i]) * (1.0 / upper[i]);
            errors[i] = error;
            // The squared errors sum up to tr(ΔW (G + damping·I) ΔWᵀ): the damping's part is not the output's.
            let change = f64::from(value - original[i]);
            loss += f64::from(error) * f64::from(error) - block.damping * change * change;
            // From the start of a chunk: the columns before this one are done with, and U is 0 there.
            let from = i / LANES * LANES;
            add_scaled(&mut row[from..len], error, &upper[from..]);
        }
        loss
    }
}

/// `target += factor * source`.
#[inline(always)]
fn add_scaled(target: &mut [f32], factor: f32, source: &[f32]) {
    let (target, target_tail) = target.as_chunks_mut::<LANES>();
    let (source, source_tail) = source.as_chunks::<LANES>();
    for (target, source) in target.iter_mut().zip(source) {
        // A new array, because vector instructions need all reads to come before all writes.
        *target = std::array::from_fn(|lane| target[lane] + factor * source[lane]);
    }
    for (target, source) in target_tail.iter_mut().zip(source_tail) {
        *target += factor * source;
    }
}
