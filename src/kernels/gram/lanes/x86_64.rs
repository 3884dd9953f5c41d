//! The vector operations on x86-64.
#![expect(
    unsafe_code,
    reason = "intrinsics that load and store, and functions compiled for instructions that the CPU is known to have"
)]

use std::arch::x86_64::{
    __m256, __m512, __m512bh, _MM_HINT_T0, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps,
    _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};
use std::mem::transmute;

use half::bf16;

use super::{Lanes, Packs};
use crate::kernels::InstructionSet;
use crate::kernels::gram::pack::{Columns, Element, Line, Panels, pair, single};
use crate::kernels::gram::tile::{Task, multiply};

/// The type of an instruction set, from the names of its intrinsics. `tile` is rows times vectors: with a row of the right
/// panel and one lane of the left, its sums fit into the registers.
macro_rules! instruction_set {
    (
        $name:ident, $features:literal, tile = $rows:literal x $vectors:literal, rows_per_lane = $rows_per_lane:literal,
        $vector:ty = [f32; $lanes:literal], $zero:ident, $load:ident, $splat:ident, $add:ident, $store:ident,
        $multiply_add:expr
    ) => {
        #[derive(Clone, Copy)]
        pub struct $name(());

        impl $name {
            /// # Panics
            /// Where the CPU lacks the instructions.
            pub fn new() -> Self {
                let set = InstructionSet::$name;
                assert!(set.is_available(), "this CPU has no {}", set.name());
                Self(())
            }

            #[target_feature(enable = $features)]
            fn multiply_inner(self, panels: Panels<'_>, task: &mut Task<'_>) {
                multiply::<Self, $rows, $vectors>(self, panels, task);
            }

            #[target_feature(enable = $features)]
            fn pack_inner<E: Element>(
                self,
                columns: Columns<'_, E>,
                panels: &mut [Line],
                abs_sum: &mut [f32],
                lane: impl Fn([E; $rows_per_lane]) -> u32,
            ) {
                columns.pack(self, panels, abs_sum, lane);
            }
        }

        impl Lanes for $name {
            const LANES: usize = $lanes;
            const ROWS_PER_LANE: usize = $rows_per_lane;
            type Vector = $vector;

            #[inline(always)]
            fn zero(self) -> $vector {
                // SAFETY: `new` checked the instructions.
                unsafe { $zero() }
            }

            #[inline(always)]
            fn load(self, lanes: &[u32]) -> $vector {
                let lanes = &lanes[..$lanes];
                // SAFETY: the slice is as long as the vector, and `new` checked the instructions.
                unsafe { $load(lanes.as_ptr().cast()) }
            }

            #[inline(always)]
            fn splat(self, lane: u32) -> $vector {
                // SAFETY: `new` checked the instructions.
                unsafe { $splat(f32::from_bits(lane)) }
            }

            #[inline(always)]
            fn multiply_add(self, left: $vector, right: $vector, sums: $vector) -> $vector {
                // SAFETY: `new` checked the instructions.
                unsafe { $multiply_add(left, right, sums) }
            }

            #[inline(always)]
            fn add_to(self, sums: $vector, target: &mut [f32]) {
                let target = &mut target[..$lanes];
                // SAFETY: the slice is as long as the vector, and `new` checked the instructions.
                unsafe { $store(target.as_mut_ptr(), $add($load(target.as_ptr()), sums)) }
            }

            #[inline(always)]
            fn prefetch<E>(self, numbers: &[E]) {
                const CACHE_LINE: usize = 64;
                for line in numbers.chunks(CACHE_LINE / size_of::<E>()) {
                    // SAFETY: fetching changes nothing that a program could see, whatever the address.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
                }
            }

            fn multiply(self, panels: Panels<'_>, task: &mut Task<'_>) {
                // SAFETY: `new` checked the instructions.
                unsafe { self.multiply_inner(panels, task) }
            }
        }
    };
}

instruction_set!(
    Avx2, "avx2,fma", tile = 6 x 2, rows_per_lane = 1,
    __m256 = [f32; 8], _mm256_setzero_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_storeu_ps,
    _mm256_fmadd_ps
);

instruction_set!(
    Avx512, "avx512f,avx512bw,avx512dq,avx512vl", tile = 8 x 3, rows_per_lane = 1,
    __m512 = [f32; 16], _mm512_setzero_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_storeu_ps,
    _mm512_fmadd_ps
);

instruction_set!(
    Avx512Bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", tile = 8 x 3, rows_per_lane = 2,
    __m512 = [f32; 16], _mm512_setzero_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_storeu_ps,
    multiply_add_pairs
);

/// `sums` and the products of bfloat16 pairs, both in each lane.
#[inline]
#[target_feature(enable = "avx512bf16")]
fn multiply_add_pairs(left: __m512, right: __m512, sums: __m512) -> __m512 {
    // SAFETY: the types are of one size, and each takes any bits.
    let [left, right] = unsafe { transmute::<[__m512; 2], [__m512bh; 2]>([left, right]) };
    _mm512_dpbf16_ps(sums, left, right)
}

/// Packing, where each number has its lane.
macro_rules! packs_singles {
    ($($name:ident),*) => {$(
        impl<E: Element> Packs<E> for $name {
            fn pack(self, columns: Columns<'_, E>, panels: &mut [Line], abs_sum: &mut [f32]) {
                // SAFETY: `new` checked the instructions.
                unsafe { self.pack_inner(columns, panels, abs_sum, single) }
            }
        }
    )*};
}

packs_singles!(Avx2, Avx512);

impl Packs<bf16> for Avx512Bf16 {
    fn pack(self, columns: Columns<'_, bf16>, panels: &mut [Line], abs_sum: &mut [f32]) {
        // SAFETY: `new` checked the instructions.
        unsafe { self.pack_inner(columns, panels, abs_sum, pair) }
    }
}
