//! Rows of X into panels: so many neighbouring columns, one row or pair of rows after the other.

use half::bf16;
use rayon::prelude::*;

use super::PANEL;
use super::lanes::{Lanes, Packs};

/// Rows of lanes in a panel.
pub const DEPTH: usize = 256;

/// How far ahead of its use a row is fetched: a panel's part of a row is too short for the CPU to guess the next one.
const ROWS_AHEAD: usize = 16;

/// One row of a panel.
pub type Line = [u32; PANEL];

/// Memory for the panels, kept between calls so that its pages need not be cleared again.
#[derive(Debug, Default)]
pub struct Scratch(Vec<u32>);

impl Scratch {
    /// `len` lines, aligned to the cache's lines so that no vector of a panel straddles two.
    fn lines(&mut self, len: usize) -> &mut [Line] {
        const CACHE_LINE: usize = 64;
        let spare = CACHE_LINE / size_of::<u32>();
        if self.0.len() < PANEL * len + spare {
            self.0.resize(PANEL * len + spare, 0);
        }
        let start = self.0.as_ptr().align_offset(CACHE_LINE);
        self.0[start..start + PANEL * len].as_chunks_mut().0
    }
}

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
    // `half`'s conversion also turns signalling NaNs into quiet ones, which costs a comparison.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// A lane with one number.
#[inline(always)]
pub fn single<E: Element>([number]: [E; 1]) -> u32 {
    number.to_f32().to_bits()
}

/// A lane with the numbers of two rows.
#[inline(always)]
pub fn pair([upper, lower]: [bf16; 2]) -> u32 {
    u32::from(upper.to_bits()) | u32::from(lower.to_bits()) << 16
}

/// Neighbouring columns of rows of X.
#[derive(Clone, Copy)]
pub struct Columns<'a, E> {
    rows: &'a [E],
    width: usize,
    first: usize,
}

/// Packs all columns of `rows` and adds their absolute values to `abs_sum`, `[width]`.
pub fn pack<'a, E: Sync, L: Packs<E>>(
    lanes: L,
    rows: &[E],
    abs_sum: &mut [f32],
    scratch: &'a mut Scratch,
) -> Panels<'a> {
    let width = abs_sum.len();
    let depth = (rows.len() / width).div_ceil(L::ROWS_PER_LANE);
    let n_panels = width.div_ceil(PANEL);
    let lines = scratch.lines(n_panels * depth);
    // A task reads as many columns of a row at once as leaves some tasks for each thread.
    let group = n_panels.div_ceil(2 * rayon::current_num_threads());
    lines
        .par_chunks_mut(group * depth)
        .zip(abs_sum.par_chunks_mut(group * PANEL))
        .enumerate()
        .for_each(|(index, (panels, abs_sum))| {
            let columns = Columns {
                rows,
                width,
                first: index * group * PANEL,
            };
            lanes.pack(columns, panels, abs_sum);
        });
    Panels { lines, depth }
}

impl<E: Element> Columns<'_, E> {
    /// Packs as many columns as `abs_sum` has, `lane` by lane, and adds their absolute values up.
    #[inline(always)]
    pub fn pack<L: Lanes, const ROWS_PER_LANE: usize>(
        self,
        lanes: L,
        panels: &mut [Line],
        abs_sum: &mut [f32],
        lane: impl Fn([E; ROWS_PER_LANE]) -> u32,
    ) {
        let n_rows = self.rows.len() / self.width;
        let depth = n_rows.div_ceil(ROWS_PER_LANE);
        let zeros = [E::default(); PANEL];
        let mut padded = [zeros; ROWS_PER_LANE];
        let mut sums = vec![[0f32; PANEL]; abs_sum.len().div_ceil(PANEL)];
        for at in 0..depth {
            for (index, sums) in sums.iter_mut().enumerate() {
                let first = index * PANEL;
                let columns = PANEL.min(abs_sum.len() - first);
                let part = |row: usize| {
                    let start = row * self.width + self.first + first;
                    self.rows.get(start..start + columns)
                };
                let mut parts = [&zeros; ROWS_PER_LANE];
                for (row, (target, padded)) in parts.iter_mut().zip(&mut padded).enumerate() {
                    let row = at * ROWS_PER_LANE + row;
                    if let Some(ahead) = part(row + ROWS_AHEAD) {
                        lanes.prefetch(ahead);
                    }
                    if let Some(numbers) = part(row) {
                        *target = numbers.first_chunk().unwrap_or_else(|| {
                            padded[..columns].copy_from_slice(numbers);
                            padded
                        });
                    }
                }
                let line = &mut panels[index * depth + at];
                for column in 0..PANEL {
                    let numbers = parts.map(|part| part[column]);
                    line[column] = lane(numbers);
                    for number in numbers {
                        sums[column] += number.to_f32().abs();
                    }
                }
            }
        }
        for (total, sum) in abs_sum.iter_mut().zip(sums.as_flattened()) {
            *total += sum;
        }
    }
}
