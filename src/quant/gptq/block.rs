//! GPTQ's column loop inside one block of columns, one row at a time. Rows do not depend on each other.

use std::ops::Range;

use super::Settings;
use super::order::Order;
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

impl Block<'_> {
    /// Rounds one row of the block, and returns its part of `tr(ΔW G ΔWᵀ)`.
    ///
    /// `row` holds the weights from the block's start to the end of the last group that starts in it, with all updates
    /// so far; `original` holds the block's weights without any. `errors` (one a position) receives
    /// `(rounded - weight) / U_jj`, `grids` (one a group) the grids of the groups that start here, and `codes` (one a
    /// column of the whole row) the codes.
    pub fn solve_row(
        &self,
        row: &mut [f32],
        original: &[f32],
        errors: &mut [f32],
        grids: &mut [Grid],
        codes: &mut [u8],
    ) -> f64 {
        let (start, len) = (self.positions.start, self.positions.len());
        let mut loss = 0.0;
        for (i, upper) in self.upper.chunks_exact(len).enumerate() {
            let position = start + i;
            let grid = &mut grids[self.order.groups[position]];
            if let Some(group) = self.order.group_starting_at(position) {
                let weights = &row[i..group.end - start];
                *grid = self
                    .settings
                    .fit(weights, &self.importance[group], self.scheme);
            }
            let (code, value) = grid.round(row[i]);
            codes[self.order.columns[position]] = code;
            // The reciprocal does not wait for the row, as a division of the difference would.
            let error = (value - row[i]) * (1.0 / upper[i]);
            errors[i] = error;
            // The squared errors sum up to tr(ΔW (G + damping·I) ΔWᵀ): the damping's part is not the output's.
            let change = f64::from(value - original[i]);
            loss += f64::from(error) * f64::from(error) - self.damping * change * change;
            // From the start of a chunk: the columns before this one are done with, and U is 0 there.
            let from = i / LANES * LANES;
            add_scaled(&mut row[from..len], error, &upper[from..]);
        }
        loss
    }
}

/// `target += factor * source`.
#[inline]
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
