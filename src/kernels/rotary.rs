//! Rotary position embeddings of bfloat16 heads, in place.
#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

use half::bf16;
use rayon::prelude::*;

use super::bf16::{round, widen};
use super::{InstructionSet, Vectorized, vectorized};

/// Positions to a task.
const TASK_POSITIONS: usize = 64;

/// Cosines and sines of as many positions as a window has, `[T, dim]` each, for the first `dim` dimensions of a head.
///
/// Dimensions `i` and `i + dim / 2` turn together: `x cos + swap(x) sin` with the halves of `x` swapped, so the first half
/// of `sin` is negated.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    pub cos: &'a [bf16],
    pub sin: &'a [bf16],
    pub dim: usize,
}

/// Turns `x`, `[B, T, heads, head_dim]`, whose windows start at the tables' first position. Products and sums are float32,
/// rounded once.
///
/// # Panics
/// Where the lengths do not fit together, or if this CPU lacks `set`.
pub fn rotate(
    set: InstructionSet,
    x: &mut [bf16],
    [heads, head_dim]: [usize; 2],
    tables: Tables<'_>,
) {
    let Tables { cos, sin, dim } = tables;
    let width = heads * head_dim;
    assert_eq!(cos.len(), sin.len());
    assert!(heads > 0 && dim > 0 && dim.is_multiple_of(2) && dim <= head_dim);
    assert!(!cos.is_empty() && cos.len().is_multiple_of(dim));
    let n_positions = cos.len() / dim;
    assert!(x.len().is_multiple_of(n_positions * width));
    let windows = x.par_chunks_mut(n_positions * width);
    windows.for_each(|window| {
        let parts = window.par_chunks_mut(TASK_POSITIONS * width);
        let turns = cos
            .par_chunks(TASK_POSITIONS * dim)
            .zip(sin.par_chunks(TASK_POSITIONS * dim));
        parts.zip(turns).for_each(|(x, (cos, sin))| {
            let task = Task {
                x,
                width,
                head_dim,
                tables: Tables { cos, sin, dim },
            };
            vectorized(set, task);
        });
    });
}

/// Positions that one thread turns.
struct Task<'a> {
    x: &'a mut [bf16],
    width: usize,
    head_dim: usize,
    tables: Tables<'a>,
}

impl Vectorized for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Tables { cos, sin, dim } = self.tables;
        let turns = cos.chunks_exact(dim).zip(sin.chunks_exact(dim));
        for (position, (cos, sin)) in self.x.chunks_exact_mut(self.width).zip(turns) {
            let (cos_low, cos_high) = cos.split_at(dim / 2);
            let (sin_low, sin_high) = sin.split_at(dim / 2);
            for head in position.chunks_exact_mut(self.head_dim) {
                let (low, high) = head[..dim].split_at_mut(dim / 2);
                let turns = (cos_low.iter().zip(cos_high)).zip(sin_low.iter().zip(sin_high));
                let pairs = low.iter_mut().zip(high);
                for ((low, high), ((cos_low, cos_high), (sin_low, sin_high))) in pairs.zip(turns) {
                    let (x, y) = (widen(*low), widen(*high));
                    *low = round(x * widen(*cos_low) + y * widen(*sin_low));
                    *high = round(y * widen(*cos_high) + x * widen(*sin_high));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    #[test]
    fn pairs_turn_by_their_positions_angles() {
        for (dim, head_dim) in [(2, 2), (12, 12), (64, 64), (20, 80)] {
            for (n_windows, n_positions, n_heads) in [(1, 1, 1), (2, TASK_POSITIONS + 5, 3)] {
                let half = dim / 2;
                let angle = |position: usize, i: usize| (position * (i % half + 1)) as f32 / 10.0;
                let table = |value: &dyn Fn(usize, usize) -> f32| -> Vec<bf16> {
                    let cells = (0..n_positions).flat_map(|t| (0..dim).map(move |i| (t, i)));
                    cells.map(|(t, i)| bf16::from_f32(value(t, i))).collect()
                };
                let cos = table(&|t, i| angle(t, i).cos());
                let sin = table(&|t, i| if i < half { -1.0 } else { 1.0 } * angle(t, i).sin());
                let x: Vec<bf16> = (0..n_windows * n_positions * n_heads * head_dim)
                    .map(|i| bf16::from_f32((i * 7919 % 1013) as f32 / 100.0 - 5.0))
                    .collect();
                let tables = Tables {
                    cos: &cos,
                    sin: &sin,
                    dim,
                };
                for set in available() {
                    let mut found = x.clone();
                    rotate(set, &mut found, [n_heads, head_dim], tables);
                    for (at, found) in found.iter().enumerate() {
                        let position = at / (n_heads * head_dim) % n_positions;
                        let i = at % head_dim;
                        let other = if i < half {
                            at + half
                        } else {
                            at - i.min(half)
                        };
                        let turn = position * dim + i;
                        let expected = if i < dim {
                            x[at].to_f32() * cos[turn].to_f32()
                                + x[other].to_f32() * sin[turn].to_f32()
                        } else {
                            x[at].to_f32()
                        };
                        assert_eq!(*found, bf16::from_f32(expected), "{} {at}", set.name());
                    }
                }
            }
        }
    }
}
