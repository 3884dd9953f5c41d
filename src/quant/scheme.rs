//! What a quantized weight looks like: width, grouping and symmetry.

use super::Grid;
use crate::kernels::{Levels, ZeroPoint};

/// How many input columns share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupSize {
    /// This many neighbouring columns.
    Columns(usize),
    /// All columns of a row: group size -1 in the formats.
    WholeRow,
}

/// The integer grid of one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// Code width, 2 to 8.
    pub bits: u8,
    pub group_size: GroupSize,
    /// Whether the zero point stands fixed at `2^(bits-1)`.
    pub symmetric: bool,
    /// Smallest zero point that the output format can store (GPTQ v1 stores `zero - 1`, so 1 there).
    pub min_zero_point: u8,
}

impl Scheme {
    /// The largest code.
    pub fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// The zero point of a symmetric grid.
    pub fn mid_code(self) -> u8 {
        1 << (self.bits - 1)
    }

    /// What the kernels have to know of the grids.
    pub fn levels(self) -> Levels {
        Levels {
            max_code: f32::from(self.max_code()),
            zero_point: if self.symmetric {
                ZeroPoint::Fixed(f32::from(self.mid_code()))
            } else {
                ZeroPoint::Fitted {
                    least: f32::from(self.min_zero_point),
                }
            },
            min_scale: Grid::MIN_SCALE,
        }
    }

    /// Columns in one group of a weight with `in_features` columns.
    pub fn group_columns(self, in_features: usize) -> usize {
        match self.group_size {
            GroupSize::Columns(columns) => columns,
            GroupSize::WholeRow => in_features,
        }
    }

    /// Groups in a row of `in_features` columns. The last one may be narrower.
    pub fn n_groups(self, in_features: usize) -> usize {
        in_features.div_ceil(self.group_columns(in_features))
    }
}
