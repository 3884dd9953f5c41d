//! Searches the ranges of integer grids, one a row and group of columns, for the least `Δ G Δᵀ` of each row.
//!
//! Δ is what rounding to the grids adds to a row of weights, and `G` is symmetric. Groups are taken in turn: with the
//! other groups' Δ as it is, the row's loss is a quadratic function of the group's own Δ, and each end of its range moves
//! to where that is lower. Rows do not depend on each other: sixteen of them share a vector register, one a lane, and the
//! same numbers come out however many threads there are.
//!
//! The arithmetic is that of two products: the other groups' Δ with the group's columns of `G`, once a sweep, and each
//! trial's Δ with the group's own block. Both run over tiles of columns whose sums stay in registers.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls of functions that are compiled for an instruction set"
    )
)]
#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

use std::ops::Range;

use rayon::prelude::*;

use super::InstructionSet;
use super::grids::{Grids, Levels, ZeroPoint};
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{LANES, Lanes, Portable, Row};

/// Blocks of rows to a task at most: so many share each part of `G` that was gathered.
const MAX_BLOCKS: usize = 16;
/// Numbers of `G` gathered at a time: they and a block's Δ stay in the core's own cache.
const PANEL: usize = 1 << 14;

/// What a search looks at: rows, rounded after their columns were multiplied by a scale. Δ is divided by it again, so
/// that losses with different scales compare, and all of them share one `G`.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// `[rows, columns]`.
    pub weight: &'a [f32],
    /// Each `[columns]` and positive: all rows are searched with each of them.
    pub scales: &'a [Vec<f32>],
    /// `[columns, columns]`, symmetric.
    pub gram: &'a [f32],
    pub columns: usize,
    /// Columns of a group; a divisor of `columns`.
    pub group: usize,
    pub levels: Levels,
    /// For each sweep over the groups, what it tries to multiply every end of a range by.
    pub sweeps: &'a [&'a [f32]],
}

/// What a search found with one scale.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranges {
    /// `[rows, groups]`: ends of the ranges of the scaled weights; with a fixed zero point `min` is 0.
    pub min: Vec<f32>,
    pub max: Vec<f32>,
    /// `[rows]`: `Δ G Δᵀ` with ranges that cover all weights.
    pub loss_covering: Vec<f64>,
    /// `[rows]`: the same with the ranges found, never more. Not finite where the row's weights are not.
    pub loss: Vec<f64>,
}

/// Searches the ranges of all rows of `problem`, once with each of its scales.
pub fn search(set: InstructionSet, problem: &Problem<'_>) -> Vec<Ranges> {
    assert!(set.is_available(), "{} on this CPU", set.name());
    let Problem { columns, group, .. } = *problem;
    assert!(problem.weight.len().is_multiple_of(columns));
    assert_eq!(problem.gram.len(), columns * columns);
    assert!(columns.is_multiple_of(group));
    assert!(problem.scales.iter().all(|scale| scale.len() == columns));
    let own = OwnBlocks::new(problem, tile(set));
    let inverses: Vec<Vec<f32>> = problem
        .scales
        .iter()
        .map(|scale| scale.iter().map(|scale| scale.recip()).collect())
        .collect();
    let jobs: Vec<Job<'_>> = problem
        .scales
        .iter()
        .zip(&inverses)
        .flat_map(|(scale, inverse)| {
            let rows = problem.weight.chunks(LANES * columns);
            rows.map(move |rows| Job {
                rows,
                scale,
                inverse,
            })
        })
        .collect();
    // Tasks of one size, and as many as keep all threads busy.
    let threads = rayon::current_num_threads();
    let n_tasks = threads * jobs.len().div_ceil(threads * MAX_BLOCKS).max(1);
    let found: Vec<Ranges> = jobs
        .par_chunks(jobs.len().div_ceil(n_tasks).max(1))
        .flat_map_iter(|jobs| run(set, jobs, problem, &own))
        .collect();
    let per_scale = problem.weight.len().div_ceil(LANES * columns);
    (0..problem.scales.len())
        .map(|scale| Ranges::joined(&found[scale * per_scale..][..per_scale]))
        .collect()
}

impl Ranges {
    fn joined(parts: &[Self]) -> Self {
        let ends =
            |end: fn(&Self) -> &Vec<f32>| parts.iter().flat_map(end).copied().collect::<Vec<_>>();
        let losses =
            |loss: fn(&Self) -> &Vec<f64>| parts.iter().flat_map(loss).copied().collect::<Vec<_>>();
        Self {
            min: ends(|part| &part.min),
            max: ends(|part| &part.max),
            loss_covering: losses(|part| &part.loss_covering),
            loss: losses(|part| &part.loss),
        }
    }
}

/// Sixteen rows or the few that are left, to search with one scale.
#[derive(Clone, Copy)]
struct Job<'a> {
    /// `[rows, columns]`, not scaled.
    rows: &'a [f32],
    /// `[columns]`, and one over it.
    scale: &'a [f32],
    inverse: &'a [f32],
}

/// Columns whose sums fit in an instruction set's registers.
fn tile(set: InstructionSet) -> usize {
    match set {
        InstructionSet::Portable => 2,
        InstructionSet::Avx2 => 4,
        InstructionSet::Avx512 | InstructionSet::Avx512Bf16 => 16,
    }
}

fn run(
    set: InstructionSet,
    jobs: &[Job<'_>],
    problem: &Problem<'_>,
    own: &OwnBlocks,
) -> Vec<Ranges> {
    match set {
        InstructionSet::Portable => run_generic::<Portable, 2>(jobs, problem, own),
        // SAFETY: `search` has asserted that the CPU has the set.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { run_avx2(jobs, problem, own) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 | InstructionSet::Avx512Bf16 => unsafe {
            run_avx512(jobs, problem, own)
        },
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!("no other set is available"),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(jobs: &[Job<'_>], problem: &Problem<'_>, own: &OwnBlocks) -> Vec<Ranges> {
    run_generic::<Avx2, 4>(jobs, problem, own)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn run_avx512(jobs: &[Job<'_>], problem: &Problem<'_>, own: &OwnBlocks) -> Vec<Ranges> {
    run_generic::<Avx512, 16>(jobs, problem, own)
}

/// The diagonal blocks of `G`, in tiles: the numbers of one tile's columns stand together, row after row.
struct OwnBlocks {
    /// `[groups][tiles][group][tile]`, 0 beyond the group.
    values: Vec<f32>,
    /// Numbers of one group.
    size: usize,
}

impl OwnBlocks {
    fn new(problem: &Problem<'_>, tile: usize) -> Self {
        let Problem { columns, group, .. } = *problem;
        let size = group * group.next_multiple_of(tile);
        let mut values = vec![0.0; columns / group * size];
        values
            .par_chunks_mut(size)
            .enumerate()
            .for_each(|(index, block)| {
                let first = index * group;
                for row in 0..group {
                    let source = &problem.gram[(first + row) * columns + first..][..group];
                    for (tile_index, numbers) in source.chunks(tile).enumerate() {
                        let target = (tile_index * group + row) * tile;
                        block[target..][..numbers.len()].copy_from_slice(numbers);
                    }
                }
            });
        Self { values, size }
    }
}

/// A job at work: sixteen rows, column by column.
struct Block<'a> {
    /// `[columns]`, scaled.
    weight: Vec<Row>,
    /// `[columns]`, one over the scale.
    inverse: &'a [f32],
    /// `[columns]`, Δ.
    delta: Vec<Row>,
    /// `[groups]`.
    min: Vec<Row>,
    max: Vec<Row>,
    loss_covering: [f64; LANES],
    /// By how much the search has lowered the loss.
    gain: [f64; LANES],
    /// `[group]`, and what fills the last tile: the other groups' Δ times the present group's columns of `G`.
    cross: Vec<Row>,
}

/// Searches `jobs` with the instruction set that it is inlined into. The sums of `TILE` columns must fit in registers.
#[inline(always)]
fn run_generic<L: Lanes, const TILE: usize>(
    jobs: &[Job<'_>],
    problem: &Problem<'_>,
    own: &OwnBlocks,
) -> Vec<Ranges> {
    let Problem { columns, group, .. } = *problem;
    let mut blocks = Vec::with_capacity(jobs.len());
    for job in jobs {
        blocks.push(Block::covering::<L, TILE>(job, problem));
    }
    let mut panel = Panel::new(group, TILE);
    let mut trial = vec![Row::ZERO; group];
    // The first sweep finds the loss of the covering ranges on the way; without any there is still that.
    for sweep in 0..problem.sweeps.len().max(1) {
        let factors = problem.sweeps.get(sweep).copied().unwrap_or_default();
        for index in 0..columns / group {
            let (first, after) = (index * group, (index + 1) * group);
            let own = &own.values[index * own.size..][..own.size];
            for block in &mut blocks {
                block.cross.fill(Row::ZERO);
            }
            panel.add::<L, TILE>(problem, first, after..columns, &mut blocks);
            if sweep == 0 {
                for block in &mut blocks {
                    block.count::<L, TILE>(first..after, own);
                }
            }
            if factors.is_empty() {
                continue;
            }
            panel.add::<L, TILE>(problem, first, 0..first, &mut blocks);
            for block in &mut blocks {
                block.improve::<L, TILE>(index, factors, problem, own, &mut trial);
            }
        }
    }
    let found = blocks.iter().zip(jobs);
    found
        .map(|(block, job)| block.found(job.rows.len() / columns))
        .collect()
}

impl<'a> Block<'a> {
    /// The rows of `job`, scaled and rounded with ranges that cover each group.
    #[inline(always)]
    fn covering<L: Lanes, const TILE: usize>(job: &Job<'a>, problem: &Problem<'_>) -> Self {
        let columns = problem.columns;
        let mut weight = vec![Row::ZERO; columns];
        for (lane, row) in job.rows.chunks(columns).enumerate() {
            for ((target, weight), scale) in weight.iter_mut().zip(row).zip(job.scale) {
                target.0[lane] = weight * scale;
            }
        }
        let n_groups = columns / problem.group;
        let mut block = Self {
            inverse: job.inverse,
            delta: vec![Row::ZERO; columns],
            min: vec![Row::ZERO; n_groups],
            max: vec![Row::ZERO; n_groups],
            loss_covering: [0.0; LANES],
            gain: [0.0; LANES],
            cross: vec![Row::ZERO; problem.group.next_multiple_of(TILE)],
            weight,
        };
        for group in 0..n_groups {
            let span = group * problem.group..(group + 1) * problem.group;
            let zero = L::splat(0.0);
            let (mut min, mut max) = (zero, zero);
            for row in &block.weight[span.clone()] {
                let row = L::load(row);
                min = row.min(min);
                max = row.max(max);
            }
            if let ZeroPoint::Fixed(_) = problem.levels.zero_point {
                // Only the larger end counts: let the upper one be it.
                max = max.max(zero.sub(min));
                min = zero;
            }
            min.store(&mut block.min[group]);
            max.store(&mut block.max[group]);
            Grids::new(min, max, problem.levels).round(
                &block.weight[span.clone()],
                &job.inverse[span.clone()],
                &mut block.delta[span],
            );
        }
        block
    }

    /// Adds to the covering ranges' loss what the group in the columns `span` has to do with itself and with the groups
    /// in `cross`: those after it, so that each pair counts once.
    #[inline(always)]
    fn count<L: Lanes, const TILE: usize>(&mut self, span: Range<usize>, own: &[f32]) {
        let mut lanes = Row::ZERO;
        self.loss::<L, TILE>(&self.delta[span], own)
            .store(&mut lanes);
        for (sum, loss) in self.loss_covering.iter_mut().zip(lanes.0) {
            *sum += f64::from(loss);
        }
    }

    /// The row's loss as far as it depends on one group's Δ, given `cross`: `d own dᵀ + 2 d cross`.
    #[inline(always)]
    fn loss<L: Lanes, const TILE: usize>(&self, delta: &[Row], own: &[f32]) -> L {
        let mut sums = [L::splat(0.0); 2];
        let tiles = own.chunks_exact(delta.len() * TILE);
        let parts = delta.chunks(TILE).zip(self.cross.chunks_exact(TILE));
        for (index, (tile, (part, cross))) in tiles.zip(parts).enumerate() {
            let (tile, _) = tile.as_chunks::<TILE>();
            let before = index * TILE;
            let mut products: [L; TILE] = [L::splat(0.0); TILE];
            for (product, cross) in products.iter_mut().zip(cross) {
                *product = L::load(cross);
            }
            // The block is symmetric: what lies on one side of the diagonal tiles counts twice.
            multiply(&mut products, &delta[..before], &tile[..before]);
            for product in &mut products {
                *product = product.add(*product);
            }
            multiply(&mut products, part, &tile[before..]);
            for (column, (delta, product)) in part.iter().zip(products).enumerate() {
                sums[column % 2] = L::load(delta).mul_add(product, sums[column % 2]);
            }
        }
        sums[0].add(sums[1])
    }

    /// Tries to multiply both ends of one group's ranges by each of `factors`; keeps, lane by lane, what lowers the loss.
    #[inline(always)]
    fn improve<L: Lanes, const TILE: usize>(
        &mut self,
        group: usize,
        factors: &[f32],
        problem: &Problem<'_>,
        own: &[f32],
        trial: &mut [Row],
    ) {
        let span = group * problem.group..(group + 1) * problem.group;
        let mut ends = [L::load(&self.min[group]), L::load(&self.max[group])];
        let initial = self.loss::<L, TILE>(&self.delta[span.clone()], own);
        let mut lowest = initial;
        let movable = match problem.levels.zero_point {
            ZeroPoint::Fixed(_) => 1..2,
            ZeroPoint::Fitted { .. } => 0..2,
        };
        for factor in factors {
            for end in movable.clone() {
                let moved = ends[end].mul(L::splat(*factor));
                let [min, max] = match end {
                    0 => [moved, ends[1]],
                    _ => [ends[0], moved],
                };
                Grids::new(min, max, problem.levels).round(
                    &self.weight[span.clone()],
                    &self.inverse[span.clone()],
                    trial,
                );
                let found = self.loss::<L, TILE>(trial, own);
                ends[end] = found.select_less(lowest, moved, ends[end]);
                for (delta, trial) in self.delta[span.clone()].iter_mut().zip(&*trial) {
                    found
                        .select_less(lowest, L::load(trial), L::load(delta))
                        .store(delta);
                }
                lowest = found.select_less(lowest, found, lowest);
            }
        }
        ends[0].store(&mut self.min[group]);
        ends[1].store(&mut self.max[group]);
        let mut lanes = Row::ZERO;
        initial.sub(lowest).store(&mut lanes);
        for (gain, lane) in self.gain.iter_mut().zip(lanes.0) {
            *gain += f64::from(lane);
        }
    }

    /// What was found for the first `rows` lanes.
    fn found(&self, rows: usize) -> Ranges {
        let ends = |end: &[Row]| {
            let row = |lane: usize| end.iter().map(move |lanes| lanes.0[lane]);
            (0..rows).flat_map(row).collect()
        };
        let losses = self.loss_covering.iter().zip(&self.gain).take(rows);
        Ranges {
            min: ends(&self.min),
            max: ends(&self.max),
            loss_covering: self.loss_covering[..rows].to_vec(),
            loss: losses.map(|(covering, gain)| covering - gain).collect(),
        }
    }
}

/// `products[t] += Σ_i delta[i] * gram[i][t]`.
#[inline(always)]
fn multiply<L: Lanes, const TILE: usize>(
    products: &mut [L; TILE],
    delta: &[Row],
    gram: &[[f32; TILE]],
) {
    let mut sums = *products;
    for (delta, gram) in delta.iter().zip(gram) {
        let delta = L::load(delta);
        for (sum, gram) in sums.iter_mut().zip(gram) {
            *sum = delta.mul_add(L::splat(*gram), *sum);
        }
    }
    *products = sums;
}

/// Some rows of `G`, of one group's columns, in tiles as in [`OwnBlocks`].
struct Panel {
    values: Vec<f32>,
    /// Rows at most.
    rows: usize,
}

impl Panel {
    fn new(group: usize, tile: usize) -> Self {
        let width = group.next_multiple_of(tile);
        let rows = (PANEL / width).max(LANES);
        Self {
            values: vec![0.0; rows * width],
            rows,
        }
    }

    /// Adds to each block's `cross` the product of its Δ in the columns `others` with the group's columns of `G`.
    #[inline(always)]
    fn add<L: Lanes, const TILE: usize>(
        &mut self,
        problem: &Problem<'_>,
        first: usize,
        others: Range<usize>,
        blocks: &mut [Block<'_>],
    ) {
        let columns = problem.columns;
        for start in others.clone().step_by(self.rows) {
            let rows = start..others.end.min(start + self.rows);
            for (index, row) in rows.clone().enumerate() {
                let source = &problem.gram[row * columns + first..][..problem.group];
                let (tiles, rest) = source.as_chunks::<TILE>();
                for (tile, numbers) in tiles.iter().enumerate() {
                    let target = (tile * rows.len() + index) * TILE;
                    self.values[target..][..TILE].copy_from_slice(numbers);
                }
                if !rest.is_empty() {
                    let target = (tiles.len() * rows.len() + index) * TILE;
                    self.values[target..][..rest.len()].copy_from_slice(rest);
                }
            }
            for block in &mut *blocks {
                let delta = &block.delta[rows.clone()];
                let tiles = self.values.chunks_exact(rows.len() * TILE);
                for (cross, tile) in block.cross.chunks_exact_mut(TILE).zip(tiles) {
                    let mut products: [L; TILE] = [L::splat(0.0); TILE];
                    for (product, cross) in products.iter_mut().zip(&*cross) {
                        *product = L::load(cross);
                    }
                    multiply(&mut products, delta, tile.as_chunks::<TILE>().0);
                    for (product, cross) in products.iter().zip(cross) {
                        product.store(cross);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
