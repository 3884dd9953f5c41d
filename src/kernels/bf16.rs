//! Conversions between bfloat16 and float32 that the compiler can vectorise.
#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

use half::bf16;

/// The same number. `half`'s conversion also turns signalling NaNs into quiet ones, which costs a comparison.
#[inline(always)]
pub(super) fn widen(number: bf16) -> f32 {
    f32::from_bits(u32::from(number.to_bits()) << 16)
}

/// The nearest number, ties to even; NaN stays NaN.
#[inline(always)]
pub(super) fn round(number: f32) -> bf16 {
    const QUIET_NAN: u32 = 0x7fc0;
    let bits = number.to_bits();
    // Half of a bfloat16's last bit, or a little less where that leaves an even number.
    let half = 0x7fff + (bits >> 16 & 1);
    let rounded = bits.wrapping_add(half) >> 16;
    bf16::from_bits(if number.is_nan() { QUIET_NAN } else { rounded } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_are_those_of_half() {
        for bits in 0..=u16::MAX {
            let number = bf16::from_bits(bits);
            assert!(number.is_nan() || widen(number).to_bits() == number.to_f32().to_bits());
            // What lies a little below, at and a little above the middle between two numbers, and NaNs of all kinds.
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let wide = f32::from_bits(u32::from(bits) << 16 | low);
                let (found, expected) = (round(wide), bf16::from_f32(wide));
                let same = found.to_bits() == expected.to_bits();
                assert!(same || found.is_nan() && expected.is_nan(), "{wide:e}");
            }
        }
    }
}
