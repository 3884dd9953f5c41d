//! `G += XᵀX`, the Gram matrix of a linear's input, and the sums of absolute values beside it.
//!
//! The columns of X are packed into panels ([`pack`]), so many rows at a time and once for all threads. Tiles of G that
//! fit into the registers then run down two panels at a time ([`tile`]). Only the lower triangle is computed, with half of
//! the products. What an instruction set adds is a handful of vector operations ([`lanes`]). AMX's tiles are not used.
//!
//! Every element is summed in the same order whatever the number of threads, so that runs repeat bit for bit.
#![expect(
    clippy::inline_always,
    reason = "one body for all instruction sets: it is compiled inside a function for each"
)]

mod lanes;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

use half::bf16;
use rayon::prelude::*;

use super::InstructionSet;
use lanes::{Packs, Portable};
pub use pack::Scratch;
use pack::pack;
use tile::tasks;

/// Columns of a panel: three vectors of the largest registers.
const PANEL: usize = 48;

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
/// Products of bfloat16 values are exact, except that `avx512bf16` takes subnormal numbers for zero.
///
/// # Panics
/// Where the lengths do not fit together, or the CPU lacks `set`.
pub fn accumulate(set: InstructionSet, rows: Rows<'_>, sums: Sums<'_>, scratch: &mut Scratch) {
    #[cfg(target_arch = "x86_64")]
    {
        use lanes::x86_64::{Avx2, Avx512, Avx512Bf16};
        match (set, rows) {
            (InstructionSet::Avx512Bf16, Rows::Bf16(rows)) => {
                return add(Avx512Bf16::new(), rows, sums, scratch);
            }
            (InstructionSet::Avx512Bf16 | InstructionSet::Avx512, _) => {
                return add_either(Avx512::new(), rows, sums, scratch);
            }
            (InstructionSet::Avx2, _) => return add_either(Avx2::new(), rows, sums, scratch),
            (InstructionSet::Portable, _) => {}
        }
    }
    assert_eq!(set, InstructionSet::Portable);
    add_either(Portable, rows, sums, scratch);
}

fn add_either<L: Packs<bf16> + Packs<f32>>(
    lanes: L,
    rows: Rows<'_>,
    sums: Sums<'_>,
    scratch: &mut Scratch,
) {
    match rows {
        Rows::Bf16(rows) => add(lanes, rows, sums, scratch),
        Rows::F32(rows) => add(lanes, rows, sums, scratch),
    }
}

fn add<E: Sync, L: Packs<E>>(lanes: L, rows: &[E], sums: Sums<'_>, scratch: &mut Scratch) {
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
        for rows in rows.chunks(width * pack::DEPTH * L::ROWS_PER_LANE) {
            let panels = pack(lanes, rows, abs_sum, scratch);
            (tasks.par_iter_mut().with_max_len(1)).for_each(|task| lanes.multiply(panels, task));
        }
    });
}
