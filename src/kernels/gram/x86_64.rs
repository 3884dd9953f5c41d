//! The kernel on x86-64.
#![expect(
    unsafe_code,
    reason = "functions compiled for instructions that a CPU was asked for, and their intrinsics"
)]

use std::arch::x86_64::{__m512, __m512bh, _MM_HINT_T0, _mm_prefetch, _mm512_dpbf16_ps};
use std::mem::transmute;

use super::pack::Panels;
use super::tile::{self, Task};
use crate::kernels::InstructionSet;
use crate::kernels::lanes::{Avx2, Avx512, Lanes};

/// [`tile::multiply`] of lanes with one number for AVX2, or for AVX-512 where `set` has it.
///
/// # Panics
/// If this CPU lacks `set`.
pub fn multiply(set: InstructionSet, panels: Panels<'_>, task: &mut Task<'_>) {
    #[target_feature(enable = "avx2,fma")]
    fn avx2(panels: Panels<'_>, task: &mut Task<'_>) {
        tile::multiply::<Avx2, 6, 1>(panels, task, Avx2::mul_add);
    }
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn avx512(panels: Panels<'_>, task: &mut Task<'_>) {
        tile::multiply::<Avx512, 8, 3>(panels, task, Avx512::mul_add);
    }
    assert!(set.is_available());
    if set >= InstructionSet::Avx512 {
        // SAFETY: the CPU has the features, as was asserted above.
        unsafe { avx512(panels, task) }
    } else {
        assert_eq!(set, InstructionSet::Avx2);
        // SAFETY: likewise.
        unsafe { avx2(panels, task) }
    }
}

/// [`tile::multiply`] of lanes with two bfloat16 numbers.
///
/// # Panics
/// If this CPU lacks the instructions.
pub fn multiply_pairs(panels: Panels<'_>, task: &mut Task<'_>) {
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn avx512_bf16(panels: Panels<'_>, task: &mut Task<'_>) {
        tile::multiply::<Avx512, 8, 3>(panels, task, add_products_of_pairs);
    }
    assert!(InstructionSet::Avx512Bf16.is_available());
    // SAFETY: the CPU has the features, as was asserted above.
    unsafe { avx512_bf16(panels, task) }
}

/// Only for functions with the target feature, as all of [`Lanes`].
#[inline(always)]
fn add_products_of_pairs(left: Avx512, right: Avx512, sums: Avx512) -> Avx512 {
    // SAFETY: the function that this is inlined into has the target feature; the types are of one size and take any bits.
    Avx512(unsafe {
        let [left, right] = transmute::<[__m512; 2], [__m512bh; 2]>([left.0, right.0]);
        _mm512_dpbf16_ps(sums.0, left, right)
    })
}

/// Has the CPU fetch `numbers` into its caches.
#[inline(always)]
pub fn prefetch<E>(numbers: &[E]) {
    const CACHE_LINE: usize = 64;
    for line in numbers.chunks(CACHE_LINE / size_of::<E>()) {
        // SAFETY: fetching changes nothing that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}
