//! Sixteen float32 numbers at a time, in whatever registers an instruction set has for them.
#![expect(
    unsafe_code,
    reason = "intrinsics called from methods of a trait, which cannot carry target features; rows seen as numbers"
)]
#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _CMP_LT_OQ, _mm256_add_ps, _mm256_and_ps, _mm256_blendv_ps, _mm256_cmp_ps,
    _mm256_div_ps, _mm256_fmadd_ps, _mm256_load_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps,
    _mm256_set1_ps, _mm256_store_ps, _mm256_sub_ps, _mm512_add_ps, _mm512_and_ps,
    _mm512_cmp_ps_mask, _mm512_div_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_mask_blend_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_store_ps, _mm512_sub_ps,
};

/// Numbers in a [`Row`].
pub(super) const LANES: usize = 16;

/// Sixteen numbers in memory, a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Row(pub(super) [f32; LANES]);

impl Row {
    pub(super) const ZERO: Self = Self([0.0; LANES]);

    /// The numbers of neighbouring rows.
    #[inline(always)]
    pub(super) fn numbers(rows: &[Self]) -> &[f32] {
        // SAFETY: a row is an array of numbers, as long as its alignment, so that nothing lies between two of them.
        unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), rows.len() * LANES) }
    }
}

/// Sixteen numbers in registers.
///
/// Every method is meant to be inlined into a function that has the target features of the implementation: only such
/// functions may use the type. `min`, `max` and `select_less` treat NaN as the x86 instructions do: the second of two
/// operands wins, and nothing is less.
pub(super) trait Lanes: Copy {
    fn splat(value: f32) -> Self;
    fn load(row: &Row) -> Self;
    fn store(self, row: &mut Row);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once where the instruction set has that.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The largest power of two that is not above each number, which must be normal and positive.
    fn binade(self) -> Self;
    /// `if self < other { yes } else { no }`.
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self;

    /// To the nearest integer, ties to even; for numbers below 2^22.
    #[inline(always)]
    fn round(self) -> Self {
        let rounder = Self::splat((3 << 22) as f32);
        self.add(rounder).sub(rounder)
    }

    /// To the nearest float16 number, ties to even; for positive numbers up to float16's largest.
    #[inline(always)]
    fn round_to_f16(self) -> Self {
        // The sum's last bit is float16's last bit: 2^-10 of the number's binade, and 2^-24 among the subnormal numbers.
        let rounder = self
            .binade()
            .mul(Self::splat(1.5 * (1 << 13) as f32))
            .max(Self::splat(0.75));
        self.add(rounder).sub(rounder)
    }
}

/// The exponent's bits of a float32.
const EXPONENT: u32 = 0x7f80_0000;

/// Plain arrays: what the compiler makes of them.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| op(self.0[lane], other.0[lane])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    fn load(row: &Row) -> Self {
        Self(row.0)
    }
    #[inline(always)]
    fn store(self, row: &mut Row) {
        row.0 = self.0;
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // `f32::mul_add` would be a library call.
        self.mul(factor).add(addend)
    }
    #[inline(always)]
    fn binade(self) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() & EXPONENT)))
    }
    #[inline(always)]
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            if self.0[lane] < other.0[lane] {
                yes.0[lane]
            } else {
                no.0[lane]
            }
        }))
    }
}

/// Two registers of AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

/// One register of AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(pub(super) __m512);

/// An expression of intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! intrinsic {
    ($value:expr) => {
        // SAFETY: functions that use the type have its target features (see `Lanes`), and every pointer is made from a
        // reference to the sixteen numbers that are read or written.
        unsafe { $value }
    };
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        intrinsic!(Self(_mm256_set1_ps(value), _mm256_set1_ps(value)))
    }
    #[inline(always)]
    fn load(row: &Row) -> Self {
        let start = row.0.as_ptr();
        intrinsic!(Self(_mm256_load_ps(start), _mm256_load_ps(start.add(8))))
    }
    #[inline(always)]
    fn store(self, row: &mut Row) {
        let start = row.0.as_mut_ptr();
        intrinsic!({
            _mm256_store_ps(start, self.0);
            _mm256_store_ps(start.add(8), self.1);
        });
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        intrinsic!(Self(
            _mm256_add_ps(self.0, other.0),
            _mm256_add_ps(self.1, other.1)
        ))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        intrinsic!(Self(
            _mm256_sub_ps(self.0, other.0),
            _mm256_sub_ps(self.1, other.1)
        ))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        intrinsic!(Self(
            _mm256_mul_ps(self.0, other.0),
            _mm256_mul_ps(self.1, other.1)
        ))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        intrinsic!(Self(
            _mm256_div_ps(self.0, other.0),
            _mm256_div_ps(self.1, other.1)
        ))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        intrinsic!(Self(
            _mm256_min_ps(self.0, other.0),
            _mm256_min_ps(self.1, other.1)
        ))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        intrinsic!(Self(
            _mm256_max_ps(self.0, other.0),
            _mm256_max_ps(self.1, other.1)
        ))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        intrinsic!(Self(
            _mm256_fmadd_ps(self.0, factor.0, addend.0),
            _mm256_fmadd_ps(self.1, factor.1, addend.1)
        ))
    }
    #[inline(always)]
    fn binade(self) -> Self {
        intrinsic!({
            let mask = _mm256_set1_ps(f32::from_bits(EXPONENT));
            Self(_mm256_and_ps(self.0, mask), _mm256_and_ps(self.1, mask))
        })
    }
    #[inline(always)]
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        intrinsic!({
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, other.1);
            Self(
                _mm256_blendv_ps(no.0, yes.0, low),
                _mm256_blendv_ps(no.1, yes.1, high),
            )
        })
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx512 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        intrinsic!(Self(_mm512_set1_ps(value)))
    }
    #[inline(always)]
    fn load(row: &Row) -> Self {
        intrinsic!(Self(_mm512_load_ps(row.0.as_ptr())))
    }
    #[inline(always)]
    fn store(self, row: &mut Row) {
        intrinsic!(_mm512_store_ps(row.0.as_mut_ptr(), self.0));
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        intrinsic!(Self(_mm512_add_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        intrinsic!(Self(_mm512_sub_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        intrinsic!(Self(_mm512_mul_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        intrinsic!(Self(_mm512_div_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        intrinsic!(Self(_mm512_min_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        intrinsic!(Self(_mm512_max_ps(self.0, other.0)))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        intrinsic!(Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)))
    }
    #[inline(always)]
    fn binade(self) -> Self {
        intrinsic!({
            let mask = _mm512_set1_ps(f32::from_bits(EXPONENT));
            Self(_mm512_and_ps(self.0, mask))
        })
    }
    #[inline(always)]
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self {
        intrinsic!({
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0);
            Self(_mm512_mask_blend_ps(less, no.0, yes.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// What the portable lanes make of `values`; the kernels' tests hold the others to them.
    fn check(
        values: impl Iterator<Item = f32>,
        op: fn(Portable) -> Portable,
        expected: fn(f32) -> f32,
    ) {
        for value in values {
            let mut row = Row::ZERO;
            op(Portable::splat(value)).store(&mut row);
            let expected = expected(value);
            assert_eq!(
                row.0.map(f32::to_bits),
                [expected.to_bits(); LANES],
                "{value:e}"
            );
        }
    }

    #[test]
    fn float16_is_rounded_to_as_half_does() {
        // Every float16 number with its neighbours in float32, and the same for the middle between it and the next.
        let around = |bits: u16| {
            let (low, high) = (
                f16::from_bits(bits).to_f32(),
                f16::from_bits(bits + 1).to_f32(),
            );
            [low, 0.5 * (low + high)]
        };
        let largest = f16::MAX.to_bits();
        let values = (1..largest).flat_map(around).flat_map(|value| {
            [-1, 0, 1].map(|step: i32| f32::from_bits(value.to_bits().wrapping_add_signed(step)))
        });
        check(values, Portable::round_to_f16, |value| {
            f16::from_f32(value).to_f32()
        });
        check(
            [f16::MAX.to_f32()].into_iter(),
            Portable::round_to_f16,
            |value| value,
        );
    }

    #[test]
    fn rounding_is_to_the_nearest_integer_with_ties_to_even() {
        let quarters = (-1100i16..=1100).map(|i| f32::from(i) / 4.0);
        check(
            quarters,
            |lanes| lanes.round().add(Portable::splat(0.0)),
            |value| value.round_ties_even() + 0.0,
        );
    }
}
