//! `G += XᵀX`, the Gram matrix of a linear's input, and the sums of absolute values beside it.
//!
//! The columns of X are packed into panels (`pack.rs`), so many rows at a time and once for all threads. Tiles of G that
//! fit into the registers then run down two panels at a time (`tile.rs`). Only the lower triangle is computed, with half of
//! the products. AVX-512's bfloat16 instruction multiplies the numbers of two rows at once; AMX's tiles are not used.
//!
//! Every element is summed in the same order whatever the number of threads, so that runs repeat bit for bit.

#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

mod pack;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use half::bf16;
use rayon::prelude::*;

use super::InstructionSet;
use super::lanes::{Lanes, Portable};
pub use pack::Scratch;
use pack::{Element, Panels, pack, single};
use tile::{Task, tasks};

/// Rows `[T, width]` of a linear's input, row-major.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    Bf16(&'a [bf16]),
    F32(&'a [f32]),
}

/// What is summed over the rows, in the caller's memory.
#[derive(Debug)]
pub struct Sums<'a> {
    /// `[width, width]` row-major: `XᵀX` is added to the lower triangle with the diagonal; the rest is left alone.
    pub gram: &'a mut [f32],
    /// `[width]`: the columns' sums of `|x|` are added.
    pub abs_sum: &'a mut [f32],
}

/// Adds the statistics of `rows` to `sums`, in float32, on rayon's threads.
///
/// Products of bfloat16 values are exact, except that [`InstructionSet::Avx512Bf16`] takes subnormal numbers for zero.
///
/// # Panics
/// Where the lengths do not fit together, or if this CPU lacks `set`.
pub fn accumulate(set: InstructionSet, rows: Rows<'_>, sums: Sums<'_>, scratch: &mut Scratch) {
    let multiply = |panels: Panels<'_>, task: &mut Task<'_>| multiply(set, panels, task);
    match rows {
        #[cfg(target_arch = "x86_64")]
        Rows::Bf16(rows) if set == InstructionSet::Avx512Bf16 => {
            add(set, rows, sums, scratch, pack::pair, x86_64::multiply_pairs);
        }
        Rows::Bf16(rows) => add(set, rows, sums, scratch, single, multiply),
        Rows::F32(rows) => add(set, rows, sums, scratch, single, multiply),
    }
}

/// `lane` packs the numbers of so many rows, and `multiply` multiplies what it packed.
fn add<E: Element, const ROWS_PER_LANE: usize>(
    set: InstructionSet,
    rows: &[E],
    sums: Sums<'_>,
    scratch: &mut Scratch,
    lane: impl Fn([E; ROWS_PER_LANE]) -> f32 + Copy + Send + Sync,
    multiply: impl Fn(Panels<'_>, &mut Task<'_>) + Send + Sync,
) {
    let Sums { gram, abs_sum } = sums;
    let width = abs_sum.len();
    assert_eq!(gram.len(), width * width);
    if width == 0 {
        return;
    }
    assert_eq!(rows.len() % width, 0);
    let mut tasks = tasks(gram, width);
    // The caller joins rayon's threads once instead of waking them for every block.
    rayon::scope(|_| {
        for rows in rows.chunks(width * pack::DEPTH * ROWS_PER_LANE) {
            let panels = pack(set, rows, abs_sum, scratch, lane);
            let tasks = tasks.par_iter_mut().with_max_len(1);
            tasks.for_each(|task| multiply(panels, task));
        }
    });
}

/// [`tile::multiply`] of lanes with one number.
fn multiply(set: InstructionSet, panels: Panels<'_>, task: &mut Task<'_>) {
    #[cfg(target_arch = "x86_64")]
    if set != InstructionSet::Portable {
        return x86_64::multiply(set, panels, task);
    }
    assert_eq!(set, InstructionSet::Portable);
    tile::multiply::<Portable, 2, 1>(panels, task, Portable::mul_add);
}

/// Has the CPU fetch `numbers` into its caches, where it has an instruction for that.
#[inline(always)]
fn prefetch<E>(numbers: &[E]) {
    #[cfg(target_arch = "x86_64")]
    x86_64::prefetch(numbers);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}
