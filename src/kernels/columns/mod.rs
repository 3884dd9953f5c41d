//! GPTQ's column loop inside one block of columns: each column is rounded, and the block's later columns make good its
//! error.
//!
//! With `G = RRᵀ`, R upper triangular, a row's loss is `‖ΔR‖²`. `U = R⁻¹` tells what later columns should do about an
//! error, and its diagonal blocks are the inverses of R's: so inside a block U is used, and from block to block `ΔR` is
//! carried, and the whole of R need not be inverted.
//!
//! The rows of the weight do not depend on each other: sixteen of them share a vector register, one a lane, and the same
//! numbers come out however many threads there are. So the weights come transposed, the rows of a column side by side. A
//! few columns' errors wait in registers until all later columns of the block receive them at once.
#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

use super::InstructionSet;
use super::grids::{Fit, Grids, StoredGrids};
use super::lanes::{InLanes, LANES, Lanes, Row, in_lanes};

/// What [`Block::originals`] has its number of rows padded to a multiple of.
pub const ROWS: usize = LANES;

/// A block of columns, in the order in which they are rounded: `len` of them.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// `[span, padded rows]`, the weights without any update, `span` at least `len`: to the end of the last group whose
    /// grid is fitted here.
    pub originals: &'a [f32],
    /// `[span, padded rows]`, `Σ_i Δ_i R_ij` over the columns i before the block; none before the first.
    pub carried: Option<&'a [f32]>,
    /// `Uᵀ` of these columns, lower triangular: `[span, span]`, or `[len, len]` if nothing is carried. An error times
    /// `U_ij` is what column j receives of column i.
    pub factors: &'a [f32],
    /// `[span]`: what an error of 1 costs in each column, for the search for grids.
    pub importance: &'a [f32],
    /// `[len]`: where each column stands in the matrix of codes.
    pub columns: &'a [usize],
    /// `[len]`: the group of each column.
    pub groups: &'a [usize],
    /// The groups whose grids are fitted when their first column's turn comes: their columns, counted in this block.
    /// Only the first of a block may end after it.
    pub starting: &'a [Range<usize>],
    /// What was added to the diagonal of G.
    pub damping: f64,
}

/// Rows that are being rounded, block by block.
#[derive(Debug)]
pub struct Rounded {
    width: usize,
    n_groups: usize,
    /// `[rows, width]`.
    codes: Vec<u8>,
    /// `[padded rows / 16, n_groups]`.
    grids: Vec<StoredGrids>,
    /// `[rows]`.
    losses: Vec<f64>,
}

impl Rounded {
    /// Nothing rounded yet.
    pub fn new(rows: usize, width: usize, n_groups: usize) -> Self {
        let unknown = StoredGrids {
            scale: Row::ZERO,
            lowest: Row::ZERO,
        };
        Self {
            width,
            n_groups,
            codes: vec![0; rows * width],
            grids: vec![unknown; rows.div_ceil(LANES) * n_groups],
            losses: vec![0.0; rows],
        }
    }

    /// `[rows, width]`.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Scale and zero point of a group.
    pub fn grid(&self, row: usize, group: usize) -> (f32, u8) {
        let grids = &self.grids[row / LANES * self.n_groups + group];
        let lane = row % LANES;
        (grids.scale.0[lane], -grids.lowest.0[lane] as u8)
    }

    /// `[rows]`: the part of `tr(ΔW G ΔWᵀ)` that the blocks so far make up. Not finite where a weight is not.
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    fn padded(&self) -> usize {
        self.losses.len().next_multiple_of(LANES)
    }

    /// Fits the grids of all groups to `weights`, `[width, padded rows]`, and its columns' `importance`; each of `groups`
    /// names its columns there.
    pub fn fit(
        &mut self,
        set: InstructionSet,
        weights: &[f32],
        importance: &[f32],
        groups: &[Vec<usize>],
        fit: &Fit<'_>,
    ) {
        assert!(set.is_available(), "{} on this CPU", set.name());
        let padded = self.padded();
        assert_eq!(weights.len(), self.width * padded);
        assert_eq!(importance.len(), self.width);
        assert_eq!(groups.len(), self.n_groups);
        let blocks = self.grids.par_chunks_mut(self.n_groups).enumerate();
        blocks.for_each(|(index, grids)| {
            for (columns, grids) in groups.iter().zip(grids) {
                let rows: Vec<Row> = (columns.iter())
                    .map(|column| lanes(&weights[column * padded..][..padded], index))
                    .collect();
                let importance: Vec<f32> = columns.iter().map(|&c| importance[c]).collect();
                in_lanes(
                    set,
                    FitOne {
                        weights: &rows,
                        importance: &importance,
                        fit,
                        grids,
                    },
                );
            }
        });
    }

    /// Rounds a block's columns; returns their Δ, what that adds to the weights without any update, `[len, padded rows]`.
    pub fn round(&mut self, set: InstructionSet, block: &Block<'_>, fit: &Fit<'_>) -> Vec<f32> {
        assert!(set.is_available(), "{} on this CPU", set.name());
        let (padded, len) = (self.padded(), block.columns.len());
        let span = block.importance.len();
        assert!(span >= len);
        assert_eq!(block.originals.len(), span * padded);
        assert!(block.carried.is_none_or(|sums| sums.len() == span * padded));
        let side = if block.carried.is_some() { span } else { len };
        assert_eq!(block.factors.len(), side * side);
        assert_eq!(block.groups.len(), len);
        assert!((block.starting.iter()).all(|group| group.start == 0 || group.end <= len));
        let mut changes = vec![Row::ZERO; padded / LANES * len];
        (self.grids.par_chunks_mut(self.n_groups))
            .zip(self.codes.par_chunks_mut(LANES * self.width))
            .zip(self.losses.par_chunks_mut(LANES))
            .zip(changes.par_chunks_mut(len))
            .enumerate()
            .for_each(|(index, (((grids, codes), losses), changes))| {
                let gather = |lines: &[f32]| -> Vec<Row> {
                    (lines.chunks_exact(padded))
                        .map(|line| lanes(line, index))
                        .collect()
                };
                let task = RoundRows {
                    block,
                    fit,
                    originals: &gather(block.originals),
                    carried: &block.carried.map(gather).unwrap_or_default(),
                    side,
                    width: self.width,
                    grids,
                    codes,
                    losses,
                    changes,
                };
                in_lanes(set, task);
            });
        let mut transposed = vec![0.0; len * padded];
        let lines = transposed.par_chunks_exact_mut(padded).with_min_len(8);
        lines.enumerate().for_each(|(column, line)| {
            let (line, _) = line.as_chunks_mut::<LANES>();
            for (target, changes) in line.iter_mut().zip(changes.chunks_exact(len)) {
                *target = changes[column].0;
            }
        });
        transposed
    }
}

/// Sixteen numbers of a line.
fn lanes(line: &[f32], index: usize) -> Row {
    Row(line.as_chunks::<LANES>().0[index])
}

/// Fits one group's grids.
struct FitOne<'a> {
    weights: &'a [Row],
    importance: &'a [f32],
    fit: &'a Fit<'a>,
    grids: &'a mut StoredGrids,
}

impl InLanes for FitOne<'_> {
    #[inline(always)]
    fn run<L: Lanes, const PANEL: usize>(self) {
        Grids::<L>::fitted(self.weights, self.importance, self.fit).store(self.grids);
    }
}

/// Rounds sixteen rows of a block, or the few that are left.
struct RoundRows<'a> {
    block: &'a Block<'a>,
    fit: &'a Fit<'a>,
    /// `[span]`.
    originals: &'a [Row],
    /// `[span]` or empty.
    carried: &'a [Row],
    /// Rows and columns of the factors.
    side: usize,
    width: usize,
    /// `[n_groups]`.
    grids: &'a mut [StoredGrids],
    /// `[rows, width]`.
    codes: &'a mut [u8],
    /// `[rows]`.
    losses: &'a mut [f64],
    /// `[len]`.
    changes: &'a mut [Row],
}

impl InLanes for RoundRows<'_> {
    #[inline(always)]
    fn run<L: Lanes, const PANEL: usize>(self) {
        let Block {
            factors,
            importance,
            columns,
            groups,
            starting,
            damping,
            ..
        } = *self.block;
        let (len, side) = (columns.len(), self.side);
        let mut weights = self.originals.to_vec();
        // The best that these columns can do about what the columns before them did.
        for (index, sums) in self.carried.chunks(PANEL).enumerate() {
            let mut panel = [L::splat(0.0); PANEL];
            for (waiting, sum) in panel.iter_mut().zip(sums) {
                *waiting = L::splat(0.0).sub(L::load(sum));
            }
            let from = index * PANEL;
            let factors = &factors[from * side..];
            receive(
                &mut weights[from..],
                factors,
                side,
                from..from + sums.len(),
                &panel,
            );
        }
        let levels = self.fit.levels;
        let mut starting = starting.iter().peekable();
        let (mut squares, mut changes) = (L::splat(0.0), L::splat(0.0));
        let mut from = 0;
        while from < len {
            if let Some(group) = starting.next_if(|group| group.start == from) {
                Grids::<L>::fitted(
                    &weights[group.clone()],
                    &importance[group.clone()],
                    self.fit,
                )
                .store(&mut self.grids[groups[from]]);
            }
            // A group's grid is fitted to weights that have seen all updates.
            let next = starting.peek().map_or(len, |group| group.start);
            let to = (from + PANEL).min(next).min(len);
            let mut panel = [L::splat(0.0); PANEL];
            for (waiting, column) in panel.iter_mut().zip(from..to) {
                let weight = L::load(&weights[column]);
                let grids = Grids::<L>::load(&self.grids[groups[column]], levels);
                let steps = grids.steps(weight);
                let value = steps.mul(grids.scale);
                // The last byte of such a sum is the code.
                let mut sums = Row::ZERO;
                (steps.sub(grids.lowest).add(L::splat((1 << 23) as f32))).store(&mut sums);
                for (codes, sum) in self.codes.chunks_exact_mut(self.width).zip(sums.0) {
                    codes[columns[column]] = sum.to_bits() as u8;
                }
                // The reciprocal does not wait for the row, as a division of the difference would.
                let inverse = L::splat(1.0 / factors[column * side + column]);
                let error = value.sub(weight).mul(inverse);
                *waiting = error;
                let change = value.sub(L::load(&self.originals[column]));
                change.store(&mut self.changes[column]);
                squares = error.mul_add(error, squares);
                changes = change.mul_add(change, changes);
                for later in column + 1..to {
                    let factor = L::splat(factors[later * side + column]);
                    let sum = error.mul_add(factor, L::load(&weights[later]));
                    sum.store(&mut weights[later]);
                }
            }
            let factors = &factors[to * side..];
            receive(&mut weights[to..len], factors, side, from..to, &panel);
            from = to;
        }
        // The squared errors sum up to tr(ΔW (G + damping·I) ΔWᵀ): the damping's part is not the output's.
        let mut sums = [Row::ZERO; 2];
        squares.store(&mut sums[0]);
        changes.store(&mut sums[1]);
        for (lane, loss) in self.losses.iter_mut().enumerate() {
            *loss += f64::from(sums[0].0[lane]) - damping * f64::from(sums[1].0[lane]);
        }
    }
}

/// Adds to each weight what it receives from the columns of `panel`; its line of the `factors` has those in `columns`.
#[inline(always)]
fn receive<L: Lanes, const PANEL: usize>(
    weights: &mut [Row],
    factors: &[f32],
    side: usize,
    columns: Range<usize>,
    panel: &[L; PANEL],
) {
    for (weight, factors) in weights.iter_mut().zip(factors.chunks_exact(side)) {
        let mut sum = L::load(weight);
        let factors = &factors[columns.clone()];
        // The usual case apart, so that its loop has no end to look for.
        if let ([factors], _) = factors.as_chunks::<PANEL>() {
            for (error, factor) in panel.iter().zip(factors) {
                sum = error.mul_add(L::splat(*factor), sum);
            }
        } else {
            for (error, factor) in panel.iter().zip(factors) {
                sum = error.mul_add(L::splat(*factor), sum);
            }
        }
        sum.store(weight);
    }
}
