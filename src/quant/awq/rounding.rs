//! The range that each group's grid covers, searched to lower the error of the output.
//!
//! The published search cuts each group at a fraction of its largest absolute weight, on both sides alike, and looks at
//! one group alone: only the diagonal block of the Gram matrix counts. Here the two ends move apart from each other, outwards too,
//! and the whole matrix counts: groups are taken in turn, and each minimises the error of its row given the present
//! rounding of the other groups, so that no step raises it. Rows do not depend on each other: many take each step at once.

use rayon::prelude::*;
use tch::Tensor;

use crate::quant::{Error, Grid, QuantizedLinear, Scheme};
use crate::tensor::to_f32;

use super::grids::Grids;
use super::{chunk_elements, group_columns};

/// What each sweep over the groups tries to multiply every end of a range by: coarse steps first.
pub(super) const SWEEPS: &[&[f64]] = &[&[0.85], &[0.92, 1.08], &[0.95, 1.05], &[0.97, 1.03]];

/// The ranges of all groups of a weight, and the error that rounding with their grids makes.
pub(super) struct Rounding {
    scheme: Scheme,
    /// `[out, n_groups]`, the ends of the ranges.
    min: Tensor,
    max: Tensor,
    /// `[out, in]`: what rounding adds to the weight.
    pub(super) delta: Tensor,
}

impl Rounding {
    /// Ranges that cover all of `weight` (`[out, in]` float32, contiguous).
    pub(super) fn covering(weight: &Tensor, scheme: Scheme) -> Result<Self, Error> {
        let (out_features, in_features) = weight.size2()?;
        let columns = group_columns(scheme, in_features);
        let grouped = weight.f_view([out_features, in_features / columns, columns])?;
        let (mut min, mut max) = grouped.f_aminmax(2, true)?;
        if scheme.symmetric {
            // Only the larger end of a symmetric range counts: let the upper one be it.
            max = max.f_maximum(&min.f_neg()?)?;
            min = min.f_zeros_like()?;
        }
        let mut delta = weight.f_empty_like()?;
        Grids::from_range(&min, &max, scheme)?
            .round_into(&grouped, &mut delta.f_view_as(&grouped)?)?;
        let _ = delta.f_sub_(weight)?;
        Ok(Self {
            scheme,
            min: min.f_squeeze_dim(2)?,
            max: max.f_squeeze_dim(2)?,
            delta,
        })
    }

    /// Moves the ranges to lower `tr(Δ G Δᵀ)`, G the Gram matrix `[in, in]`.
    pub(super) fn search(
        &mut self,
        weight: &Tensor,
        gram: &Tensor,
        sweeps: &[&[f64]],
    ) -> Result<(), Error> {
        let (out_features, in_features) = weight.size2()?;
        let columns = group_columns(self.scheme, in_features);
        let chunk = (chunk_elements(weight.device()) / columns).max(1);
        let mut start = 0;
        while start < out_features {
            let len = chunk.min(out_features - start);
            let rows = |tensor: &Tensor| tensor.f_narrow(0, start, len);
            let mut chunk = Self {
                scheme: self.scheme,
                min: rows(&self.min)?,
                max: rows(&self.max)?,
                delta: rows(&self.delta)?,
            };
            let weight = rows(weight)?;
            for factors in sweeps {
                for group in 0..in_features / columns {
                    chunk.improve(group, columns, factors, &weight, gram)?;
                }
            }
            start += len;
        }
        Ok(())
    }

    /// Tries to multiply both ends of one group's ranges by each of `factors`; keeps, row by row, what lowers the error.
    fn improve(
        &mut self,
        group: i64,
        columns: i64,
        factors: &[f64],
        weight: &Tensor,
        gram: &Tensor,
    ) -> Result<(), Error> {
        let first = group * columns;
        let weight = weight.f_narrow(1, first, columns)?.f_contiguous()?;
        let gram = gram.f_narrow(1, first, columns)?;
        let own = gram.f_narrow(0, first, columns)?;
        let mut slot = self.delta.f_narrow(1, first, columns)?;
        let mut delta = weight.f_empty_like()?;
        delta.f_copy_(&slot)?;
        let _ = slot.f_zero_()?;
        // Error of the row as a function of this group's d: d own dᵀ + d cross, and what does not depend on d.
        let cross = self.delta.f_mm(&gram)?.f_mul_scalar_(2.0)?;
        let mut trial = weight.f_empty_like()?;
        let mut product = weight.f_empty_like()?;
        let mut error = |delta: &Tensor| -> Result<Tensor, Error> {
            let _ = delta.f_mm_out(&product, &own)?;
            let _ = product.f_add_(&cross)?.f_mul_(delta)?;
            Ok(product.f_sum_dim_intlist(1, true, None)?)
        };
        let mut lowest = error(&delta)?;
        let mut ends = [
            self.min.f_narrow(1, group, 1)?,
            self.max.f_narrow(1, group, 1)?,
        ];
        let movable = if self.scheme.symmetric { 1..2 } else { 0..2 };
        for factor in factors {
            for end in movable.clone() {
                let moved = ends[end].f_mul_scalar(*factor)?;
                let grids = match end {
                    0 => Grids::from_range(&moved, &ends[1], self.scheme)?,
                    _ => Grids::from_range(&ends[0], &moved, self.scheme)?,
                };
                grids.round_into(&weight, &mut trial)?;
                let _ = trial.f_sub_(&weight)?;
                let found = error(&trial)?;
                let better = found.f_lt_tensor(&lowest)?;
                lowest = found.f_where_self(&better, &lowest)?;
                ends[end].f_copy_(&moved.f_where_self(&better, &ends[end])?)?;
                let _ = trial.f_where_self_out(&delta, &better, &delta)?;
            }
        }
        slot.f_copy_(&delta)?;
        Ok(())
    }

    /// The codes of `weight`, on the host.
    pub(super) fn codes(&self, weight: &Tensor) -> Result<QuantizedLinear, Error> {
        let (out_features, in_features) = weight.size2()?;
        let columns = group_columns(self.scheme, in_features) as usize;
        let (min, max) = (to_f32(&self.min)?, to_f32(&self.max)?);
        let grids: Vec<Grid> = (min.iter().zip(&max))
            .map(|(&min, &max)| Grid::from_range(min, max, self.scheme))
            .collect();
        let weight = to_f32(weight)?;
        let mut codes = vec![0; weight.len()];
        (
            codes.par_chunks_mut(columns),
            weight.par_chunks(columns),
            &grids,
        )
            .into_par_iter()
            .for_each(|(codes, weights, grid)| {
                for (code, &weight) in codes.iter_mut().zip(weights) {
                    *code = grid.code(weight);
                }
            });
        Ok(QuantizedLinear::new(
            out_features as usize,
            in_features as usize,
            self.scheme,
            codes,
            &grids,
            None,
        ))
    }
}
