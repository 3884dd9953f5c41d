//! The search for ranges as tensor operations, for devices that [`crate::kernels`] does not run on.
//!
//! Rows do not depend on each other: many take each step at once.

use tch::{Kind, Tensor};

use crate::kernels::ranges::Ranges;
use crate::quant::{Error, Scheme};
use crate::tensor::to_f32;

use super::grids::Grids;
use super::group_columns;

/// Elements worked on at a time.
const CHUNK_ELEMENTS: i64 = 1 << 26;

/// The ranges of all groups of a weight, and the error that rounding with their grids makes.
pub(super) struct Rounding {
    scheme: Scheme,
    /// `[out, n_groups]`, the ends of the ranges.
    min: Tensor,
    max: Tensor,
    /// `[out, in]`: what rounding adds to the weight.
    delta: Tensor,
}

impl Rounding {
    /// What [`kernels::ranges::search`](crate::kernels::ranges::search) does, with one scale that is in `weight` (`[rows, in]`
    /// float32, contiguous) and `gram` (`[in, in]` float32) already.
    pub(super) fn search_all(
        weight: &Tensor,
        gram: &Tensor,
        scheme: Scheme,
        sweeps: &[&[f32]],
    ) -> Result<Ranges, Error> {
        let mut found = Ranges::default();
        for rows in weight.f_split((CHUNK_ELEMENTS / weight.size2()?.1).max(1), 0)? {
            let mut rounding = Self::covering(&rows, scheme)?;
            found.loss_covering.extend(rounding.losses(gram)?);
            rounding.search(&rows, gram, sweeps)?;
            found.loss.extend(rounding.losses(gram)?);
            found.min.extend(to_f32(&rounding.min)?);
            found.max.extend(to_f32(&rounding.max)?);
        }
        Ok(found)
    }

    /// `Δ G Δᵀ` of each row.
    fn losses(&self, gram: &Tensor) -> Result<Vec<f64>, Error> {
        let product = self.delta.f_mm(gram)?.f_mul_(&self.delta)?;
        let losses = product.f_sum_dim_intlist(1, false, Kind::Double)?;
        Ok(Vec::try_from(losses)?)
    }

    /// Ranges that cover all of `weight` (`[out, in]` float32, contiguous).
    fn covering(weight: &Tensor, scheme: Scheme) -> Result<Self, Error> {
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
    fn search(&mut self, weight: &Tensor, gram: &Tensor, sweeps: &[&[f32]]) -> Result<(), Error> {
        let in_features = weight.size2()?.1;
        let columns = group_columns(self.scheme, in_features);
        for factors in sweeps {
            for group in 0..in_features / columns {
                self.improve(group, columns, factors, weight, gram)?;
            }
        }
        Ok(())
    }

    /// Tries to multiply both ends of one group's ranges by each of `factors`; keeps, row by row, what lowers the error.
    fn improve(
        &mut self,
        group: i64,
        columns: i64,
        factors: &[f32],
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
                let moved = ends[end].f_mul_scalar(f64::from(*factor))?;
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
}
