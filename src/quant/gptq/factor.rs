//! The factor of the Gram matrix that tells GPTQ how the other columns make good one column's error.

use std::ops::Range;

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

/// What all linears with one input share: made once a stage, used by [`super::solve`] for each linear.
#[derive(Debug)]
pub struct Factor {
    /// R `[in, in]` float32, upper triangular, with `RRᵀ = G + damping·I`, in the order of solving. The paper's
    /// factor of the inverse is `U = R⁻¹`, of which only blocks on the diagonal are ever needed.
    pub(super) root: Tensor,
    pub(super) order: Order,
    /// `R_jj²` `[in]`: what an error of 1 costs at each position, once all later ones have made good what they can.
    pub(super) importance: Vec<f32>,
    /// What was added to the diagonal of G.
    pub(super) damping: f64,
    pub(super) n_tokens: usize,
    /// At each position, whether the column is to be set to 0.
    pub(super) dead: Vec<bool>,
    act_order: ActOrder,
    group_columns: usize,
    /// The damping as a fraction of the mean of `diag(G)`: `Settings::damp`, or more if that was too little.
    pub damp_used: f64,
    /// Input columns that were 0 for every token. Their weights become 0, unless all are dead: then nothing was seen,
    /// and the weight is rounded to nearest.
    pub n_dead: usize,
}

impl Factor {
    /// Orders the columns and factors the damped `stats.gram`, on the device where that is. Besides it two matrices of its
    /// size live at once, and it is dropped before the second is made.
    ///
    /// # Errors
    /// [`Error::NotPositiveDefinite`] if even a damping of 1 does not help: then the matrix is no sum of squares.
    pub fn new(stats: InputStats, scheme: Scheme, settings: &Settings) -> Result<Self, Error> {
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

        // A Cholesky factor of the reversed matrix, reversed again, is upper triangular.
        let InputStats { gram, n_tokens, .. } = stats;
        let reversed = reversed(&gram, &order)?;
        drop(gram);
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
        let _ = reversed.f_diagonal(0, 0, 1)?.f_add_(&fill)?;
        let Some((lower, damp_used)) = cholesky(&reversed, mean, settings.damp)? else {
            return Err(Error::NotPositiveDefinite {
                size,
                damp: DAMP_CEILING.max(settings.damp),
                n_tokens,
            });
        };
        drop(reversed);
        let root = lower.f_flip([0, 1])?;
        let roots = tensor::to_f32(&root.f_diagonal(0, 0, 1)?)?;
        let dead = (order.columns.iter()).map(|&column| diagonal[column] == 0.0 && n_dead < size);
        let dead = dead.collect();
        Ok(Self {
            root,
            order,
            importance: roots.iter().map(|root| root * root).collect(),
            // What stands in for a G of zeros is damping too.
            damping: (damp_used + f64::from(u8::from(n_dead == size))) * mean,
            n_tokens,
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

    /// The block of U at these positions, rows and columns.
    pub(super) fn inverse_of_block(
        &self,
        positions: Range<usize>,
    ) -> Result<Tensor, tch::TchError> {
        let (start, len) = (positions.start as i64, positions.len() as i64);
        let block = self.root.f_narrow(0, start, len)?.f_narrow(1, start, len)?;
        let identity = Tensor::f_eye(len, (block.kind(), block.device()))?;
        block.f_linalg_solve_triangular(&identity, true, true, false)
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
