//! Integer grids in lanes: the arithmetic of `quant::Grid`, to which the tests of its users hold it.

use crate::kernels::lanes::{Lanes, Row};

/// The codes that a grid has; a code `q` stands for `(q - zero_point) * scale`.
#[derive(Debug, Clone, Copy)]
pub struct Levels {
    pub max_code: f32,
    pub zero_point: ZeroPoint,
    /// Smallest scale; scales are rounded to float16.
    pub min_scale: f32,
}

/// Where 0 lies among the codes.
#[derive(Debug, Clone, Copy)]
pub enum ZeroPoint {
    /// Always here; only the range's upper end counts then.
    Fixed(f32),
    /// Where the range has it, but not below `least`.
    Fitted { least: f32 },
}

/// The largest float16 number.
const MAX_SCALE: f32 = 65504.0;

/// Sixteen grids, one a lane.
pub(super) struct Grids<L> {
    scale: L,
    lowest: L,
    highest: L,
}

impl<L: Lanes> Grids<L> {
    /// The grids that cover `[min, max]`, widened to contain 0.
    #[inline(always)]
    pub(super) fn new(min: L, max: L, levels: Levels) -> Self {
        let zero = L::splat(0.0);
        let max_code = L::splat(levels.max_code);
        let (below, max) = (zero.sub(min).max(zero), max.max(zero));
        let (scale, zero_point) = match levels.zero_point {
            ZeroPoint::Fixed(zero_point) => {
                let reach = max.max(below);
                (
                    Self::stored(reach.add(reach).div(max_code), levels),
                    L::splat(zero_point),
                )
            }
            ZeroPoint::Fitted { least } => {
                let scale = Self::stored(max.add(below).div(max_code), levels);
                let zero_point = below.div(scale).min(max_code).round();
                if least > 0.0 {
                    // Keep the range's upper end within the codes that the least zero point leaves.
                    let least = L::splat(least);
                    let moved = max.div(max_code.sub(least)).max(below.div(least));
                    let moved = Self::stored(moved, levels);
                    (
                        zero_point.select_less(least, moved, scale),
                        zero_point.max(least),
                    )
                } else {
                    (scale, zero_point)
                }
            }
        };
        Self {
            scale,
            lowest: zero.sub(zero_point),
            highest: max_code.sub(zero_point),
        }
    }

    /// `scale` as it is stored. Not a closure: those would be compiled without the instruction set.
    #[inline(always)]
    fn stored(scale: L, levels: Levels) -> L {
        let bounded = scale
            .max(L::splat(levels.min_scale))
            .min(L::splat(MAX_SCALE));
        bounded.round_to_f16()
    }

    /// Writes what rounding adds to `weight`, times `inverse`, into `delta`.
    #[inline(always)]
    pub(super) fn round(&self, weight: &[Row], inverse: &[f32], delta: &mut [Row]) {
        for ((weight, inverse), delta) in weight.iter().zip(inverse).zip(delta) {
            let weight = L::load(weight);
            let steps = weight.div(self.scale).max(self.lowest).min(self.highest);
            let rounded = steps.round().mul(self.scale);
            rounded.sub(weight).mul(L::splat(*inverse)).store(delta);
        }
    }
}
