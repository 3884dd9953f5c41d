//! The factor of the inverse Gram matrix that tells GPTQ how the other columns make good one column's error.

use rayon::prelude::*;
use tch::{Device, Tensor};

use super::order::Order;
use super::{ActOrder, Settings};
use crate::quant::{Error, InputStats, Scheme};
use crate::tensor;

/// A factorisation that fails is tried again with this times the damping ...
const DAMP_STEP: f64 = 4.0;
/// ... but no less than this ...
const DAMP_FLOOR: f64 = 1e-3;
/// ... and no more than this, as much as the mean of the diagonal: no sum of squares needs more.
const DAMP_CEILING: f64 = 1.0;
/// Up to this size a triangular matrix is inverted by one solve, above it by halves.
const INVERSE_LEAF: i64 = 128;

/// What all linears with one input share: made once a stage, used by [`super::solve`] for each linear.
#[derive(Debug)]
pub struct Factor {
    /// U `[in, in]` float32, upper triangular, with `UᵀU = (G + damping·I)⁻¹`, in the order of solving.
    pub(super) upper: Tensor,
    pub(super) order: Order,
    /// `U_jj⁻²` `[in]`: what an error of 1 costs at each position, once all later ones have made good what they can.
    pub(super) importance: Vec<f32>,
    /// What was added to the diagonal of G.
    pub(super) damping: f64,
    pub(super) n_tokens: usize,
    /// Positions of columns to set to 0.
    dead: Vec<i64>,
    act_order: ActOrder,
    group_columns: usize,
    /// The damping as a fraction of the mean of `diag(G)`: `Settings::damp`, or more if that was too little.
    pub damp_used: f64,
    /// Input columns that were 0 for every token. Their weights become 0, unless all are dead: then nothing was seen,
    /// and the weight is rounded to nearest.
    pub n_dead: usize,
}

impl Factor {
    /// Orders the columns and factors the damped inverse of `stats.gram`, on the device where that is.
    ///
    /// # Errors
    /// [`Error::NotPositiveDefinite`] if even a damping of 1 does not help: then the matrix is no sum of squares.
    pub fn new(stats: &InputStats, scheme: Scheme, settings: &Settings) -> Result<Self, Error> {
        let device = stats.gram.device();
        let diagonal = tensor::to_f32(&stats.gram.f_diagonal(0, 0, 1)?)?;
        let size = diagonal.len();
        let n_dead = diagonal.iter().filter(|&&d| d == 0.0).count();
        let sum: f64 = diagonal.iter().map(|&d| f64::from(d)).sum();
        let mean = if n_dead < size {
            sum / (size - n_dead) as f64
        } else {
            1.0
        };
        let order = Order::new(settings.act_order, &diagonal, scheme);

        // With a Cholesky factor of the reversed matrix, reversed again, G = RRᵀ and R is upper triangular: U = R⁻¹.
        let gram = reversed(&stats.gram, &order)?;
        let fill: Vec<f32> = (order.columns.iter().rev())
            .map(|&column| {
                if diagonal[column] == 0.0 {
                    mean as f32
                } else {
                    0.0
                }
            })
            .collect();
        let fill = tensor::from_f32(&fill, &[size])?.f_to_device(device)?;
        let _ = gram.f_diagonal(0, 0, 1)?.f_add_(&fill)?;
        let Some((lower, damp_used)) = cholesky(&gram, mean, settings.damp)? else {
            return Err(Error::NotPositiveDefinite {
                size,
                damp: DAMP_CEILING.max(settings.damp),
                n_tokens: stats.n_tokens,
            });
        };
        drop(gram);
        let upper = invert_lower(&lower)?.f_flip([0, 1])?;
        let roots = tensor::to_f32(&upper.f_diagonal(0, 0, 1)?)?;
        let dead: Vec<i64> = (order.columns.iter().zip(0..))
            .filter(|(column, _)| diagonal[**column] == 0.0 && n_dead < size)
            .map(|(_, position)| position)
            .collect();
        Ok(Self {
            upper,
            order,
            importance: roots.iter().map(|root| 1.0 / (root * root)).collect(),
            // What stands in for a G of zeros is damping too.
            damping: (damp_used + f64::from(u8::from(n_dead == size))) * mean,
            n_tokens: stats.n_tokens,
            dead,
            act_order: settings.act_order,
            group_columns: scheme.group_columns(size),
            damp_used,
            n_dead,
        })
    }

    pub(super) fn assert_made_for(&self, in_features: usize, scheme: Scheme, settings: &Settings) {
        assert_eq!(
            self.importance.len(),
            in_features,
            "factor of another input"
        );
        assert_eq!(self.group_columns, scheme.group_columns(in_features));
        assert_eq!(self.act_order, settings.act_order);
    }

    /// The positions of dead columns, if there are any.
    pub(super) fn dead(&self, device: Device) -> Result<Option<Tensor>, tch::TchError> {
        let dead = (!self.dead.is_empty()).then(|| Tensor::f_from_slice(&self.dead));
        dead.map(|dead| dead?.f_to_device(device)).transpose()
    }
}

/// The lower Cholesky factor of `gram + damp·mean·I` and the damp that it took; adds that to `gram`'s diagonal.
fn cholesky(gram: &Tensor, mean: f64, damp: f64) -> Result<Option<(Tensor, f64)>, tch::TchError> {
    let mut diagonal = gram.f_diagonal(0, 0, 1)?;
    let (mut damp, mut added) = (damp, 0.0);
    loop {
        let _ = diagonal.f_add_scalar_((damp - added) * mean)?;
        added = damp;
        let (lower, info) = gram.f_linalg_cholesky_ex(false, false)?;
        if info.f_int64_value(&[])? == 0 {
            return Ok(Some((lower, damp)));
        }
        if damp >= DAMP_CEILING {
            return Ok(None);
        }
        damp = (damp * DAMP_STEP).clamp(DAMP_FLOOR, DAMP_CEILING);
    }
}

/// `gram` with rows and columns in the reversed order of solving; on the host the lower triangle alone, and 0 above it.
fn reversed(gram: &Tensor, order: &Order) -> Result<Tensor, Error> {
    if gram.device() != Device::Cpu {
        let index = order.index(gram.device())?.f_flip([0])?;
        return Ok(gram.f_index_select(0, &index)?.f_index_select(1, &index)?);
    }
    let size = order.columns.len();
    let columns: Vec<usize> = order.columns.iter().rev().copied().collect();
    let gram = gram.f_contiguous()?;
    let source = tensor::f32_slice(&gram);
    let mut target = tensor::Exclusive::zeros(&[size, size])?;
    let rows = target.values().par_chunks_mut(size).enumerate();
    rows.for_each(|(row, target)| {
        let source = &source[columns[row] * size..][..size];
        for (target, &column) in target.iter_mut().zip(&columns[..=row]) {
            *target = source[column];
        }
    });
    Ok(target.into_tensor())
}

/// The inverse of a lower triangular matrix.
fn invert_lower(lower: &Tensor) -> Result<Tensor, tch::TchError> {
    let inverse = lower.f_zeros_like()?;
    invert_lower_into(lower, &inverse)?;
    Ok(inverse)
}

/// Writes the inverse by halves: products, and half the work of a solve against the identity.
fn invert_lower_into(lower: &Tensor, inverse: &Tensor) -> Result<(), tch::TchError> {
    let size = lower.size()[0];
    if size <= INVERSE_LEAF {
        let identity = Tensor::f_eye(size, (lower.kind(), lower.device()))?;
        let solved = lower.f_linalg_solve_triangular(&identity, false, true, false)?;
        return inverse.shallow_clone().f_copy_(&solved);
    }
    let (half, rest) = (size / 2, size - size / 2);
    let part = |of: &Tensor, row, rows, column, columns| {
        of.f_narrow(0, row, rows)?.f_narrow(1, column, columns)
    };
    let top = part(inverse, 0, half, 0, half)?;
    let bottom = part(inverse, half, rest, half, rest)?;
    invert_lower_into(&part(lower, 0, half, 0, half)?, &top)?;
    invert_lower_into(&part(lower, half, rest, half, rest)?, &bottom)?;
    let corner = part(lower, half, rest, 0, half)?.f_mm(&top)?.f_neg_()?;
    let _ = bottom.f_mm_out(&part(inverse, half, rest, 0, half)?, &corner)?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn triangular_inverses_are_inverses() {
        tch::manual_seed(3);
        for size in [1, 127, 128, 129, 300, 517] {
            let gram = Tensor::randn([2 * size, size], (Kind::Float, Device::Cpu));
            let lower = gram.tr().mm(&gram).linalg_cholesky(false);
            let product = invert_lower(&lower).unwrap().mm(&lower);
            let off = (product - Tensor::eye(size, (Kind::Float, Device::Cpu))).abs();
            assert!(off.max().double_value(&[]) < 1e-4, "{size}");
        }
    }
}
