//! Root mean square norms of bfloat16 rows, read and written once.
#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

use half::bf16;
use rayon::prelude::*;

use super::bf16::{round, widen};
use super::lanes::LANES;
use super::{InstructionSet, Vectorized, vectorized};

/// Rows to a task.
const TASK_ROWS: usize = 64;

/// How rows are normalized.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[width]`: what each column is multiplied by in the end.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// Whether a normalized number is rounded to bfloat16 before it is multiplied.
    pub round_first: bool,
}

/// Writes `row / sqrt(mean(row²) + eps) * weight` for each row of `x`, `[rows, width]`, to `out`, computed in float32.
///
/// # Panics
/// Where the lengths do not fit together, or if this CPU lacks `set`.
pub fn rms_norm(set: InstructionSet, x: &[bf16], norm: Norm<'_>, out: &mut [bf16]) {
    let width = norm.weight.len();
    assert_eq!(x.len(), out.len());
    assert!(width > 0 && x.len().is_multiple_of(width));
    x.par_chunks(TASK_ROWS * width)
        .zip(out.par_chunks_mut(TASK_ROWS * width))
        .for_each(|(x, out)| vectorized(set, Task { x, norm, out }));
}

/// Rows that one thread normalizes.
struct Task<'a> {
    x: &'a [bf16],
    norm: Norm<'a>,
    out: &'a mut [bf16],
}

impl Vectorized for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Norm {
            weight,
            eps,
            round_first,
        } = self.norm;
        let width = weight.len();
        let rows = self.x.chunks_exact(width);
        for (x, out) in rows.zip(self.out.chunks_exact_mut(width)) {
            let factor = (sum_of_squares(x) / width as f32 + eps).sqrt().recip();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                let mut normalized = widen(*x) * factor;
                if round_first {
                    normalized = widen(round(normalized));
                }
                *out = round(normalized * weight);
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares(row: &[bf16]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += widen(*x) * widen(*x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += widen(*x) * widen(*x);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    #[test]
    fn rows_are_normalized_whatever_their_width() {
        for width in [1, 15, 16, 33, 576] {
            for n_rows in [1, TASK_ROWS + 3] {
                let number = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) / 100.0;
                let x: Vec<bf16> = (0..n_rows * width)
                    .map(|i| bf16::from_f32(number(i)))
                    .collect();
                let weight: Vec<f32> = (0..width).map(|i| 1.0 + number(i) / 10.0).collect();
                for round_first in [true, false] {
                    let norm = Norm {
                        weight: &weight,
                        eps: 1e-5,
                        round_first,
                    };
                    let mut results = Vec::new();
                    for set in available() {
                        let mut out = vec![bf16::ZERO; x.len()];
                        rms_norm(set, &x, norm, &mut out);
                        check(&x, norm, &out);
                        results.push(out);
                    }
                    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
                }
            }
        }
    }

    fn check(x: &[bf16], norm: Norm<'_>, out: &[bf16]) {
        let width = norm.weight.len();
        for (x, out) in x.chunks(width).zip(out.chunks(width)) {
            let squares: f64 = x.iter().map(|x| x.to_f64().powi(2)).sum();
            let rms = (squares / width as f64 + f64::from(norm.eps)).sqrt();
            for ((x, out), weight) in x.iter().zip(out).zip(norm.weight) {
                let expected = x.to_f64() / rms * f64::from(*weight);
                // Half of bfloat16's last bit for each rounding.
                let roundings = if norm.round_first { 2.0 } else { 1.0 };
                let bound = roundings * expected.abs() * f64::powi(2.0, -8);
                let error = (out.to_f64() - expected).abs();
                assert!(error <= bound + 1e-30, "{out} {expected}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_does_not_get_lost() {
        let mut x = [bf16::ONE; 20];
        x[3] = bf16::INFINITY;
        let norm = Norm {
            weight: &[1.0; 20],
            eps: 0.0,
            round_first: true,
        };
        for set in available() {
            let mut out = [bf16::ZERO; 20];
            rms_norm(set, &x, norm, &mut out);
            assert!(out[3].is_nan());
        }
    }
}
