//! The kernel on x86-64.
#![expect(
    unsafe_code,
    reason = "functions compiled for instructions that a CPU was asked for, and their intrinsics"
)]

use std::arch::x86_64::{__m512, __m512bh, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps};
use std::mem::transmute;

use half::bf16;

use super::block::{self, Task};
use super::pack::{Arithmetic, Format, Single};
use crate::kernels::InstructionSet;
use crate::kernels::lanes::{Avx2, Avx512, Lanes, Row};

/// [`block::attend`] of lanes with one number for AVX2, or for AVX-512 where `set` has it.
///
/// # Panics
/// If this CPU lacks `set`.
pub fn attend_single(set: InstructionSet, task: &mut Task<'_>) {
    #[target_feature(enable = "avx2,fma")]
    fn avx2(task: &mut Task<'_>) {
        block::attend::<Avx2, Single, 6, 1>(task);
    }
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn avx512(task: &mut Task<'_>) {
        block::attend::<Avx512, Single, 12, 2>(task);
    }
    assert!(set.is_available());
    if set >= InstructionSet::Avx512 {
        // SAFETY: the CPU has the features, as was asserted above.
        unsafe { avx512(task) }
    } else {
        assert_eq!(set, InstructionSet::Avx2);
        // SAFETY: likewise.
        unsafe { avx2(task) }
    }
}

/// [`block::attend`] of lanes with two bfloat16 numbers.
///
/// # Panics
/// If this CPU lacks the instructions.
pub fn attend_pairs(task: &mut Task<'_>) {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn avx512_bf16(task: &mut Task<'_>) {
        block::attend::<Avx512, Pair, 12, 2>(task);
    }
    assert!(InstructionSet::Avx512Bf16.is_available());
    // SAFETY: the CPU has the features, as was asserted above.
    unsafe { avx512_bf16(task) }
}

/// Two bfloat16 in a lane, the first in the lower half.
///
/// Its arithmetic is only for functions with the target feature, as all of [`Lanes`].
pub struct Pair;

/// Two ones in a lane.
const ONES: f32 = f32::from_bits(0x3f80_3f80);

impl Format for Pair {
    const PER_LANE: usize = 2;

    #[inline(always)]
    fn lane([first, second]: [bf16; 2]) -> f32 {
        f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
    }
}

impl Arithmetic<Avx512> for Pair {
    #[inline(always)]
    fn multiply_add(left: Avx512, right: Avx512, sum: Avx512) -> Avx512 {
        // SAFETY: the function that this is inlined into has the target feature; the types are of one size and take any
        // bits.
        Avx512(unsafe {
            let [left, right] = transmute::<[__m512; 2], [__m512bh; 2]>([left.0, right.0]);
            _mm512_dpbf16_ps(sum.0, left, right)
        })
    }

    #[inline(always)]
    fn store_probabilities(
        [low, high]: [Avx512; 2],
        rows: &mut [Row],
        unit: usize,
        sum: Avx512,
    ) -> Avx512 {
        // SAFETY: likewise.
        let pairs =
            Avx512(unsafe { transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high.0, low.0)) });
        pairs.store(&mut rows[unit]);
        Self::multiply_add(pairs, Avx512::splat(ONES), sum)
    }
}
