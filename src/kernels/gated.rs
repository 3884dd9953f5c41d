//! The gate of an MLP: `silu(gate) * up` of bfloat16 numbers, in place.
#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

use std::f32::consts::LOG2_E;

use half::bf16;
use rayon::prelude::*;

use super::InstructionSet;
use super::bf16::{round, widen};
use super::lanes::{InLanes, LANES, Lanes, Row, in_lanes};

/// Numbers to a task.
const TASK: usize = 1 << 14;

/// Replaces each number of `gate` by `silu(gate) * up`, with `silu(x) = x / (1 + exp(-x))`; computed in float32 and rounded
/// once.
///
/// # Panics
/// Where the lengths differ, or if this CPU lacks `set`.
pub fn silu_mul(set: InstructionSet, gate: &mut [bf16], up: &[bf16]) {
    assert_eq!(gate.len(), up.len());
    gate.par_chunks_mut(TASK)
        .zip(up.par_chunks(TASK))
        .for_each(|(gate, up)| in_lanes(set, Gate { gate, up }));
}

struct Gate<'a> {
    gate: &'a mut [bf16],
    up: &'a [bf16],
}

impl InLanes for Gate<'_> {
    #[inline(always)]
    fn run<L: Lanes, const PANEL: usize>(self) {
        let (gates, gates_rest) = self.gate.as_chunks_mut::<LANES>();
        let (ups, ups_rest) = self.up.as_chunks::<LANES>();
        for (gate, up) in gates.iter_mut().zip(ups) {
            *gate = gated::<L>(*gate, *up);
        }
        let (mut gate, mut up) = ([bf16::ZERO; LANES], [bf16::ZERO; LANES]);
        gate[..gates_rest.len()].copy_from_slice(gates_rest);
        up[..ups_rest.len()].copy_from_slice(ups_rest);
        gates_rest.copy_from_slice(&gated::<L>(gate, up)[..ups_rest.len()]);
    }
}

#[inline(always)]
fn gated<L: Lanes>(gate: [bf16; LANES], up: [bf16; LANES]) -> [bf16; LANES] {
    let (mut x, mut factor) = (Row::ZERO, Row::ZERO);
    for lane in 0..LANES {
        x.0[lane] = widen(gate[lane]);
        factor.0[lane] = widen(up[lane]);
    }
    let (x, factor) = (L::load(&x), L::load(&factor));
    // The square of a root, because `exp2` ends at 2^127 while exp(-x) has to become infinite.
    let root = x.mul(L::splat(-LOG2_E / 2.0)).min(L::splat(127.0)).exp2();
    let product = x.div(root.mul_add(root, L::splat(1.0))).mul(factor);
    let mut found = Row::ZERO;
    product.store(&mut found);
    found.0.map(round)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::available;

    /// All bfloat16 gates, with factors of both signs.
    #[test]
    fn gates_are_those_of_float64() {
        let gate: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let up: Vec<bf16> = (0..gate.len())
            .map(|i| bf16::from_f32((i % 7) as f32 - 3.0))
            .collect();
        for set in available() {
            // Not a multiple of the lanes.
            for len in [gate.len(), 5] {
                let mut found = gate.clone();
                silu_mul(set, &mut found[..len], &up[..len]);
                for ((found, gate), up) in found.iter().zip(&gate).zip(&up).take(len) {
                    let x = gate.to_f64();
                    let expected = x / (1.0 + (-x).exp()) * up.to_f64();
                    let same = if bf16::from_f64(expected).is_finite() {
                        // Half of bfloat16's last bit, and what float32 is off by; the divisor may overflow where the quotient
                        // is that small.
                        let bound = expected.abs() * (f64::powi(2.0, -8) + 1e-6) + 1e-36;
                        (found.to_f64() - expected).abs() <= bound
                    } else {
                        !found.is_finite()
                    };
                    assert!(same, "{} {gate} {up}: {found} {expected}", set.name());
                }
            }
        }
    }
}
