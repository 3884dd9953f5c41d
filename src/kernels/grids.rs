//! Integer grids in lanes: the arithmetic of `quant::Grid`, to which the tests of its users hold it.

#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

use super::lanes::{Lanes, Row};

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

/// How the grid of a group of weights is found.
#[derive(Debug, Clone, Copy)]
pub struct Fit<'a> {
    pub levels: Levels,
    /// The range is tried times each of these, and the grid with the least `Σ importance·error²` is taken; the first of
    /// equals. Without any, the grid covers the range.
    ///
    /// Cutting off a few extremes makes the steps for all others finer; the fewer the codes, the more that pays.
    pub parts: &'a [f32],
    /// Whether a fixed zero point's grids are also tried with the lowest code at whichever end of the range is farther
    /// from 0.
    ///
    /// The scale is negative where that is the upper end. Such a grid uses all codes, where one that covers the range
    /// takes half a step more than it needs below and half a step less above. AutoRound's documentation calls this signed
    /// full-range symmetric quantization.
    pub full_range: bool,
}

/// Sixteen grids, one a lane.
#[derive(Clone, Copy)]
pub(super) struct Grids<L> {
    pub(super) scale: L,
    /// The lowest and the highest code, less the zero point.
    pub(super) lowest: L,
    highest: L,
}

/// [`Grids`] in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredGrids {
    pub(super) scale: Row,
    pub(super) lowest: Row,
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

    /// The grids whose lowest code stands for whichever of `min` and `max` is farther from 0: see [`Fit::full_range`].
    #[inline(always)]
    fn full_range(min: L, max: L, zero_point: f32, levels: Levels) -> Self {
        let zero = L::splat(0.0);
        let below = zero.sub(min);
        let zero_point = L::splat(zero_point);
        let scale = Self::stored(below.max(max).div(zero_point), levels);
        Self {
            scale: below.select_less(max, zero.sub(scale), scale),
            lowest: zero.sub(zero_point),
            highest: L::splat(levels.max_code).sub(zero_point),
        }
    }

    /// The grids of a group, of which `weights` has a row a column; an error of 1 there costs `importance`.
    #[inline(always)]
    pub(super) fn fitted(weights: &[Row], importance: &[f32], fit: &Fit<'_>) -> Self {
        let (mut min, mut max) = (L::splat(0.0), L::splat(0.0));
        for row in weights {
            let row = L::load(row);
            min = row.min(min);
            max = row.max(max);
        }
        let mut best = Self::new(min, max, fit.levels);
        let mut least = L::splat(f32::INFINITY);
        for part in fit.parts {
            let part = L::splat(*part);
            let (min, max) = (min.mul(part), max.mul(part));
            Self::new(min, max, fit.levels).compete(weights, importance, &mut best, &mut least);
            if let (true, ZeroPoint::Fixed(zero_point)) = (fit.full_range, fit.levels.zero_point) {
                let full = Self::full_range(min, max, zero_point, fit.levels);
                full.compete(weights, importance, &mut best, &mut least);
            }
        }
        best
    }

    /// Takes the place of `best` in the lanes where it costs less than `least`.
    #[inline(always)]
    fn compete(self, weights: &[Row], importance: &[f32], best: &mut Self, least: &mut L) {
        // Here a product does for the quotient: it differs where a weight is as far from one code as from the next.
        let inverse = L::splat(1.0).div(self.scale);
        let mut cost = L::splat(0.0);
        for (weight, importance) in weights.iter().zip(importance) {
            let weight = L::load(weight);
            let steps = weight.mul(inverse).max(self.lowest).min(self.highest);
            let error = steps.round().mul(self.scale).sub(weight);
            cost = error.mul(error).mul_add(L::splat(*importance), cost);
        }
        best.scale = cost.select_less(*least, self.scale, best.scale);
        best.lowest = cost.select_less(*least, self.lowest, best.lowest);
        best.highest = cost.select_less(*least, self.highest, best.highest);
        *least = cost.select_less(*least, cost, *least);
    }

    #[inline(always)]
    pub(super) fn load(stored: &StoredGrids, levels: Levels) -> Self {
        let lowest = L::load(&stored.lowest);
        Self {
            scale: L::load(&stored.scale),
            lowest,
            highest: L::splat(levels.max_code).add(lowest),
        }
    }

    #[inline(always)]
    pub(super) fn store(self, stored: &mut StoredGrids) {
        self.scale.store(&mut stored.scale);
        self.lowest.store(&mut stored.lowest);
    }

    /// The codes nearest to `weight`, less the zero point.
    #[inline(always)]
    pub(super) fn steps(&self, weight: L) -> L {
        let steps = weight.div(self.scale).max(self.lowest).min(self.highest);
        steps.round()
    }

    /// Writes what rounding adds to `weight`, times `inverse`, into `delta`.
    #[inline(always)]
    pub(super) fn round(&self, weight: &[Row], inverse: &[f32], delta: &mut [Row]) {
        for ((weight, inverse), delta) in weight.iter().zip(inverse).zip(delta) {
            let weight = L::load(weight);
            let rounded = self.steps(weight).mul(self.scale);
            rounded.sub(weight).mul(L::splat(*inverse)).store(delta);
        }
    }
}
