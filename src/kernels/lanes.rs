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
    __m256, __m512, _CMP_LT_OQ, _mm256_add_ps, _mm256_and_ps, _mm256_blendv_ps,
    _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_div_ps, _mm256_fmadd_ps,
    _mm256_load_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_slli_epi32,
    _mm256_store_ps, _mm256_sub_ps, _mm512_add_ps, _mm512_and_ps, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_div_ps, _mm512_fmadd_ps, _mm512_load_ps,
    _mm512_mask_blend_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_slli_epi32, _mm512_store_ps, _mm512_sub_ps,
};

use super::InstructionSet;

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

    /// [`Self::numbers`], to write.
    #[inline(always)]
    pub(super) fn numbers_mut(rows: &mut [Self]) -> &mut [f32] {
        // SAFETY: likewise; the rows are borrowed mutably for as long.
        unsafe { std::slice::from_raw_parts_mut(rows.as_mut_ptr().cast(), rows.len() * LANES) }
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
    /// Two to each number, which must be an integer from -127 (which gives 0) to 127.
    fn power_of_two(self) -> Self;
    /// `if self < other { yes } else { no }`.
    fn select_less(self, other: Self, yes: Self, no: Self) -> Self;

    /// To the nearest integer, ties to even; for numbers below 2^22.
    #[inline(always)]
    fn round(self) -> Self {
        let rounder = Self::splat((3 << 22) as f32);
        self.add(rounder).sub(rounder)
    }

    /// Two to each number, for numbers up to 127; 0 where that is below the normal numbers. The relative error is below
    /// 3e-7.
    #[inline(always)]
    fn exp2(self) -> Self {
        /// From the highest power down: the least relative error from -1/2 to 1/2, but for the last, which makes 2^0 exact.
        const POLYNOMIAL: [f32; 6] = [
            0.001_327_647_2,
            0.009_675_541,
            0.055_507_133,
            0.240_221_2,
            0.693_146_97,
            1.0,
        ];
        // In this order NaN stays NaN.
        let exponent = Self::splat(-127.0).max(self);
        let whole = exponent.round();
        let rest = exponent.sub(whole);
        let mut power = Self::splat(POLYNOMIAL[0]);
        for coefficient in &POLYNOMIAL[1..] {
            power = power.mul_add(rest, Self::splat(*coefficient));
        }
        power.mul(whole.power_of_two())
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

/// Work for any kind of lanes; `PANEL` vectors may wait in registers beside what its loops load. Like [`Lanes`]' methods,
/// [`Self::run`] is meant to be inlined.
pub(super) trait InLanes {
    fn run<L: Lanes, const PANEL: usize>(self);
}

/// Runs `work` with the widest vectors that `set` has.
///
/// # Panics
/// If this CPU lacks `set`.
pub(super) fn in_lanes(set: InstructionSet, work: impl InLanes) {
    assert!(set.is_available(), "this CPU has no {}", set.name());
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(work: impl InLanes) {
            work.run::<Avx2, 4>();
        }
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512(work: impl InLanes) {
            work.run::<Avx512, 8>();
        }
        match set {
            InstructionSet::Portable => work.run::<Portable, 2>(),
            // SAFETY: the CPU has the set, as was asserted above.
            InstructionSet::Avx2 => unsafe { avx2(work) },
            // SAFETY: likewise.
            InstructionSet::Avx512 | InstructionSet::Avx512Bf16 => unsafe { avx512(work) },
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    work.run::<Portable, 2>();
}

/// The exponent's bits of a float32.
const EXPONENT: u32 = 0x7f80_0000;

/// Bits below the exponent of a float32.
const MANTISSA_BITS: u32 = 23;

/// Added to an integer from -127 to 127, it leaves the bits of that integer's power of two in the sum's lowest nine bits.
const BIASED: f32 = (3 << (MANTISSA_BITS - 1)) as f32 + 127.0;

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
    fn power_of_two(self) -> Self {
        let sum = self.add(Self::splat(BIASED)).0;
        Self(sum.map(|sum| f32::from_bits(sum.to_bits() << MANTISSA_BITS)))
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
    fn power_of_two(self) -> Self {
        let sum = self.add(Self::splat(BIASED));
        intrinsic!({
            let low = _mm256_slli_epi32::<{ MANTISSA_BITS as i32 }>(_mm256_castps_si256(sum.0));
            let high = _mm256_slli_epi32::<{ MANTISSA_BITS as i32 }>(_mm256_castps_si256(sum.1));
            Self(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
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
    fn power_of_two(self) -> Self {
        let sum = self.add(Self::splat(BIASED)).0;
        intrinsic!({
            let bits = _mm512_castps_si512(sum);
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<MANTISSA_BITS>(
                bits,
            )))
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

    #[test]
    fn powers_of_two_are_those_of_float64() {
        let exp2 = |exponent: f32| {
            let mut row = Row::ZERO;
            Portable::splat(exponent).exp2().store(&mut row);
            row.0[0]
        };
        for exponent in (-126_000..=127_000i32).map(|thousandths| thousandths as f32 / 1000.0) {
            let expected = f64::from(exponent).exp2();
            let error = (f64::from(exp2(exponent)) - expected).abs();
            assert!(error < 3e-7 * expected, "{exponent}: {error:e}");
        }
        let special = [
            (0.0, 1.0),
            (-1.0, 0.5),
            (-127.0, 0.0),
            (-1e30, 0.0),
            (f32::NEG_INFINITY, 0.0),
        ];
        for (exponent, power) in special {
            assert_eq!(exp2(exponent), power, "{exponent}");
        }
        assert!(exp2(f32::NAN).is_nan());
    }
}
