//! Rows of X into panels: so many neighbouring columns, one row or pair of rows after the other.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::prefetch;
use crate::kernels::bf16::widen;
use crate::kernels::lanes::{LANES, Row};
use crate::kernels::{InstructionSet, Vectorized, vectorized};

/// Vectors in a line of a panel.
pub const VECTORS: usize = 3;

/// Columns of a panel.
pub const PANEL: usize = VECTORS * LANES;

/// Lines of a panel: enough that adding a tile to the Gram matrix takes little of the time that its products take. All panels
/// together take 1.5 KiB of memory for each column of X.
pub const DEPTH: usize = 384;

/// How far ahead of its use a row is fetched: a panel's part of a row is too short for the CPU to guess the next one.
const ROWS_AHEAD: usize = 16;

/// A panel's columns of one row or pair of rows. A lane holds one float32, or the bits of two bfloat16.
pub type Line = [Row; VECTORS];

/// Memory for the panels, kept between calls so that its pages need not be cleared again.
#[derive(Debug, Default)]
pub struct Scratch(Vec<Line>);

/// Panels of the same depth, the last filled up with columns of zeros.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    lines: &'a [Line],
    depth: usize,
}

impl<'a> Panels<'a> {
    pub fn panel(self, index: usize) -> &'a [Line] {
        &self.lines[index * self.depth..][..self.depth]
    }
}

/// A number in X.
pub trait Element: Copy + Default + Send + Sync {
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        widen(self)
    }
}

/// A lane with one number.
#[inline(always)]
pub fn single<E: Element>([number]: [E; 1]) -> f32 {
    number.to_f32()
}

/// A lane with the numbers of two rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn pair([upper, lower]: [bf16; 2]) -> f32 {
    f32::from_bits(u32::from(upper.to_bits()) | u32::from(lower.to_bits()) << 16)
}

/// Packs all columns of `rows` and adds their absolute values to `abs_sum`, `[width]`.
pub fn pack<'a, E: Element, const ROWS_PER_LANE: usize>(
    set: InstructionSet,
    rows: &[E],
    abs_sum: &mut [f32],
    scratch: &'a mut Scratch,
    lane: impl Fn([E; ROWS_PER_LANE]) -> f32 + Copy + Send + Sync,
) -> Panels<'a> {
    let width = abs_sum.len();
    let depth = (rows.len() / width).div_ceil(ROWS_PER_LANE);
    let n_panels = width.div_ceil(PANEL);
    if scratch.0.len() < n_panels * depth {
        scratch.0.resize(n_panels * depth, [Row::ZERO; VECTORS]);
    }
    let lines = &mut scratch.0[..n_panels * depth];
    // A task reads as many columns of a row at once as leaves some tasks for each thread.
    let group = n_panels.div_ceil(2 * rayon::current_num_threads());
    lines
        .par_chunks_mut(group * depth)
        .zip(abs_sum.par_chunks_mut(group * PANEL))
        .enumerate()
        .for_each(|(index, (panels, abs_sum))| {
            let first = index * group * PANEL;
            let task = Task {
                source: Columns { rows, width, first },
                depth,
                panels,
                abs_sum,
                lane,
            };
            vectorized(set, task);
        });
    Panels { lines, depth }
}

/// Columns of X, from `first`.
struct Columns<'a, E> {
    rows: &'a [E],
    width: usize,
    first: usize,
}

impl<E> Columns<'_, E> {
    /// Some of the columns in a row, where X has that.
    #[inline(always)]
    fn part(&self, row: usize, columns: Range<usize>) -> Option<&[E]> {
        let start = row * self.width + self.first;
        self.rows.get(start + columns.start..start + columns.end)
    }
}

/// Panels that one thread packs.
struct Task<'a, E, F, const ROWS_PER_LANE: usize> {
    source: Columns<'a, E>,
    depth: usize,
    panels: &'a mut [Line],
    /// Of the panels' columns.
    abs_sum: &'a mut [f32],
    lane: F,
}

impl<E, F, const ROWS_PER_LANE: usize> Vectorized for Task<'_, E, F, ROWS_PER_LANE>
where
    E: Element,
    F: Fn([E; ROWS_PER_LANE]) -> f32,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let zeros = [E::default(); PANEL];
        let mut padded = [zeros; ROWS_PER_LANE];
        let mut sums = vec![[0f32; PANEL]; self.abs_sum.len().div_ceil(PANEL)];
        for at in 0..self.depth {
            for (index, sums) in sums.iter_mut().enumerate() {
                let end = self.abs_sum.len().min((index + 1) * PANEL);
                let columns = index * PANEL..end;
                let mut parts = [&zeros; ROWS_PER_LANE];
                for (row, (part, padded)) in parts.iter_mut().zip(&mut padded).enumerate() {
                    let row = at * ROWS_PER_LANE + row;
                    let ahead = self.source.part(row + ROWS_AHEAD, columns.clone());
                    prefetch(ahead.unwrap_or_default());
                    if let Some(numbers) = self.source.part(row, columns.clone()) {
                        *part = numbers.first_chunk().unwrap_or_else(|| {
                            padded[..numbers.len()].copy_from_slice(numbers);
                            padded
                        });
                    }
                }
                let line = &mut self.panels[index * self.depth + at];
                pack_line(parts, line, sums, &self.lane);
            }
        }
        for (total, sum) in self.abs_sum.iter_mut().zip(sums.as_flattened()) {
            *total += sum;
        }
    }
}

#[inline(always)]
fn pack_line<E: Element, const ROWS_PER_LANE: usize>(
    rows: [&[E; PANEL]; ROWS_PER_LANE],
    line: &mut Line,
    sums: &mut [f32; PANEL],
    lane: impl Fn([E; ROWS_PER_LANE]) -> f32,
) {
    let mut lanes = [0f32; PANEL];
    for (column, target) in lanes.iter_mut().enumerate() {
        *target = lane(rows.map(|row| row[column]));
    }
    for (target, lanes) in line.iter_mut().zip(lanes.as_chunks().0) {
        target.0 = *lanes;
    }
    for row in rows {
        for (sum, number) in sums.iter_mut().zip(row) {
            *sum += number.to_f32().abs();
        }
    }
}
