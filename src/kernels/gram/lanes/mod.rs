//! The vector operations that the kernel is written in, and the instruction sets that provide them.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

use super::pack::{Columns, Element, Line, Panels, single};
use super::tile::{Task, multiply};

/// A lane of 32 bits holds one column's float32 or, with two [`Self::ROWS_PER_LANE`], its bfloat16 pair from two rows.
///
/// Values of an implementing type prove that the CPU has the instructions.
pub trait Lanes: Copy + Send + Sync {
    /// Lanes of a vector.
    const LANES: usize;
    /// Rows of X in a lane.
    const ROWS_PER_LANE: usize;
    /// One vector of lanes or of float32 sums.
    type Vector: Copy;

    fn zero(self) -> Self::Vector;
    /// The first [`Self::LANES`] lanes.
    fn load(self, lanes: &[u32]) -> Self::Vector;
    /// One lane, everywhere.
    fn splat(self, lane: u32) -> Self::Vector;
    /// `sums` and the products of `left` and `right`, summed within lanes.
    fn multiply_add(
        self,
        left: Self::Vector,
        right: Self::Vector,
        sums: Self::Vector,
    ) -> Self::Vector;
    /// Adds the sums to the first [`Self::LANES`] of `target`.
    fn add_to(self, sums: Self::Vector, target: &mut [f32]);

    /// Has the CPU fetch `numbers` into its caches.
    #[inline(always)]
    fn prefetch<E>(self, _numbers: &[E]) {}

    /// [`multiply`], compiled for the instruction set.
    fn multiply(self, panels: Panels<'_>, task: &mut Task<'_>);
}

/// Packs rows of `E`.
pub trait Packs<E>: Lanes {
    /// Packs `columns` and adds their absolute values up, compiled for the instruction set.
    fn pack(self, columns: Columns<'_, E>, panels: &mut [Line], abs_sum: &mut [f32]);
}

/// Plain loops over as many lanes as the smallest vectors have.
#[derive(Clone, Copy)]
pub struct Portable;

impl Lanes for Portable {
    const LANES: usize = 4;
    const ROWS_PER_LANE: usize = 1;
    type Vector = [f32; 4];

    #[inline(always)]
    fn zero(self) -> Self::Vector {
        [0.0; 4]
    }

    #[inline(always)]
    fn load(self, lanes: &[u32]) -> Self::Vector {
        std::array::from_fn(|lane| f32::from_bits(lanes[lane]))
    }

    #[inline(always)]
    fn splat(self, lane: u32) -> Self::Vector {
        [f32::from_bits(lane); 4]
    }

    #[inline(always)]
    fn multiply_add(
        self,
        left: Self::Vector,
        right: Self::Vector,
        sums: Self::Vector,
    ) -> Self::Vector {
        std::array::from_fn(|lane| left[lane] * right[lane] + sums[lane])
    }

    #[inline(always)]
    fn add_to(self, sums: Self::Vector, target: &mut [f32]) {
        for (target, sum) in target[..4].iter_mut().zip(sums) {
            *target += sum;
        }
    }

    fn multiply(self, panels: Panels<'_>, task: &mut Task<'_>) {
        multiply::<Self, 4, 2>(self, panels, task);
    }
}

impl<E: Element> Packs<E> for Portable {
    fn pack(self, columns: Columns<'_, E>, panels: &mut [Line], abs_sum: &mut [f32]) {
        columns.pack(self, panels, abs_sum, single);
    }
}
