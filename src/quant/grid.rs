//! The integer grid of one group of weights; the only code that rounds weights to codes.

use half::f16;

use super::Scheme;

/// Adding and subtracting this rounds a float32 below 2^22 to an integer, ties to even, in two additions that the
/// compiler can vectorise; `round_ties_even` is a library call on x86-64's base instruction set.
const ROUNDER: f32 = (3 << 22) as f32;

/// Scale and zero point of one group: a code `q` stands for `(q - zero_point) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Already rounded to float16, the dtype that is stored, so that codes are computed for the scale that will be used.
    /// Negative where the lowest code stands for the upper end of the range.
    pub scale: f32,
    pub zero_point: u8,
    max_code: u8,
}

impl Grid {
    /// Smallest scale that is stored: far below any weight that matters, and still a normal division in float32.
    pub const MIN_SCALE: f32 = 1.0 / (1 << 22) as f32;

    /// A grid that was found elsewhere.
    pub fn new(scale: f32, zero_point: u8, scheme: Scheme) -> Self {
        Self {
            scale,
            zero_point,
            max_code: scheme.max_code(),
        }
    }

    /// The grid that covers `[min, max]` widened to contain 0, so that a zero weight stays zero.
    ///
    /// Symmetric: `scale = 2 max(|min|, |max|) / max_code`, as the GPTQ reference has it. Asymmetric:
    /// `scale = (max - min) / max_code`, `zero_point = round(-min / scale)`.
    #[inline(always)]
    pub fn from_range(min: f32, max: f32, scheme: Scheme) -> Self {
        let (min, max) = (min.min(0.0), max.max(0.0));
        let max_code = f32::from(scheme.max_code());
        if scheme.symmetric {
            let scale = stored(2.0 * max.max(-min) / max_code);
            return Self {
                scale,
                zero_point: scheme.mid_code(),
                max_code: scheme.max_code(),
            };
        }
        let floor = f32::from(scheme.min_zero_point);
        let mut scale = stored((max - min) / max_code);
        let mut zero_point = (-min / scale).round_ties_even().min(max_code);
        if zero_point < floor {
            // The format cannot store this zero point: keep the upper end of the range within the codes that are left.
            zero_point = floor;
            scale = stored((max / (max_code - floor)).max(-min / floor));
        }
        Self {
            scale,
            zero_point: zero_point as u8,
            max_code: scheme.max_code(),
        }
    }

    /// The grid that covers all of `weights`.
    #[inline(always)]
    pub fn covering(weights: impl IntoIterator<Item = f32>, scheme: Scheme) -> Self {
        let (min, max) = range(weights);
        Self::from_range(min, max, scheme)
    }

    /// The code nearest to `weight`.
    #[inline(always)]
    pub fn code(self, weight: f32) -> u8 {
        (self.steps(weight) + f32::from(self.zero_point)) as u8
    }

    /// The weight that `code` stands for.
    #[inline(always)]
    pub fn value(self, code: u8) -> f32 {
        (f32::from(code) - f32::from(self.zero_point)) * self.scale
    }

    /// [`Self::code`] and its [`Self::value`].
    #[inline(always)]
    pub fn round(self, weight: f32) -> (u8, f32) {
        let steps = self.steps(weight);
        (
            (steps + f32::from(self.zero_point)) as u8,
            steps * self.scale,
        )
    }

    /// `code(weight) - zero_point`.
    #[inline(always)]
    fn steps(self, weight: f32) -> f32 {
        let zero = f32::from(self.zero_point);
        // Both ends are integers, so that rounding the clamped value is clamping the rounded one.
        let clamped = (weight / self.scale).clamp(-zero, f32::from(self.max_code) - zero);
        (clamped + ROUNDER) - ROUNDER
    }
}

/// Minimum and maximum of `weights` and 0.
#[inline(always)]
fn range(weights: impl IntoIterator<Item = f32>) -> (f32, f32) {
    let widen = |(min, max): (f32, f32), w: f32| (min.min(w), max.max(w));
    weights.into_iter().fold((0.0, 0.0), widen)
}

/// `scale` as it will be stored: float16, neither zero nor infinite.
#[inline(always)]
fn stored(scale: f32) -> f32 {
    f16::from_f32(scale.clamp(Grid::MIN_SCALE, f16::MAX.to_f32())).to_f32()
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "these values are exact")]
mod tests {
    use super::super::GroupSize;
    use super::*;

    fn scheme(bits: u8, symmetric: bool, min_zero_point: u8) -> Scheme {
        Scheme {
            bits,
            group_size: GroupSize::WholeRow,
            symmetric,
            min_zero_point,
        }
    }

    #[test]
    fn every_weight_of_the_range_is_within_half_a_step() {
        for bits in [2, 3, 4, 8] {
            for symmetric in [true, false] {
                for min_zero_point in [0, 1] {
                    for (min, max) in [
                        (-1.0, 1.0),
                        (-0.3, 2.0),
                        (0.1, 0.9),
                        (-0.9, -0.1),
                        (0.0, 0.0),
                    ] {
                        let grid =
                            Grid::from_range(min, max, scheme(bits, symmetric, min_zero_point));
                        assert!(symmetric || grid.zero_point >= min_zero_point);
                        assert_eq!(grid.value(grid.code(0.0)), 0.0);
                        // A symmetric grid has one code fewer above zero than below, as in the reference.
                        let top = if symmetric { max - grid.scale } else { max };
                        for step in 0..=100 {
                            let weight = min + (top - min) * step as f32 / 100.0;
                            if weight > max || weight < min {
                                continue;
                            }
                            let error = (grid.value(grid.code(weight)) - weight).abs();
                            // The float16 rounding of the scale moves the ends by 2^-11 of the range.
                            let bound = 0.5 * grid.scale + (max - min) / 1024.0;
                            assert!(
                                error <= bound,
                                "{bits} {symmetric} {min}..{max}: {weight} off by {error}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_code_with_ties_to_even() {
        for bits in [2, 3, 4, 8] {
            let grid = Grid::from_range(-1.0, 1.0, scheme(bits, true, 0));
            for step in -2100..=2100 {
                let weight = step as f32 / 2000.0;
                let exact = (weight / grid.scale).round_ties_even() + f32::from(grid.zero_point);
                let expected = exact.clamp(0.0, f32::from(grid.max_code)) as u8;
                assert_eq!(grid.code(weight), expected, "{bits} {weight}");
                assert_eq!(grid.round(weight), (expected, grid.value(expected)));
            }
        }
    }

    #[test]
    fn zero_rows_and_tiny_rows_have_a_usable_scale() {
        for max in [0.0, 1e-30, 1e-9] {
            let grid = Grid::from_range(0.0, max, scheme(4, false, 0));
            assert!(grid.scale > 0.0 && grid.value(grid.code(max)).is_finite());
        }
    }
}
