//! The gated delta rule: before a head's state takes in a value under its key, what it holds there decays and is taken out.
//!
//! Within a chunk the values that are really taken in follow from a triangular system, as in transformers.

use super::{KvCache, Mixer, Norm, chunks, for_heads, heads, pairwise, state_before};
use crate::model::Error;
use tch::{Kind, Tensor};

/// What the linears made, `[B, T, ..]` float32.
pub(super) struct Inputs {
    /// Queries, keys and values, before their convolution.
    pub read: Tensor,
    pub gate: Tensor,
    pub beta: Tensor,
    pub step: Tensor,
}

pub(super) fn mix(
    mixer: &Mixer,
    inputs: Inputs,
    norm: &Norm,
    mut cache: Option<&mut KvCache>,
) -> Result<Tensor, Error> {
    let config = &mixer.config;
    let widths = [config.state_width(), config.state_width(), config.width()];
    let [query, key, value] = mixer.read(&inputs.read, widths, cache.as_deref_mut())?;
    let query = unit(&heads(&query, config.state_dim)?)?;
    let query = query.f_div_scalar((config.state_dim as f64).sqrt())?;
    let key = unit(&heads(&key, config.state_dim)?)?;
    let value = heads(&value, config.head_dim)?;
    let beta = inputs
        .beta
        .f_sigmoid()?
        .f_transpose(1, 2)?
        .f_unsqueeze(-1)?;
    let [_, decays] = mixer.steps(&inputs.step)?;

    let size = value.size();
    let shape = [size[0], size[1], config.state_dim as i64, size[3]];
    let mut state = state_before(cache.as_deref(), shape, &value)?;
    let mut mixed = Vec::new();
    for (start, len) in chunks(size[2]) {
        let of_chunk = |x: &Tensor| x.f_narrow(2, start, len);
        let query = for_heads(&of_chunk(&query)?, config.n_heads)?;
        let key = for_heads(&of_chunk(&key)?, config.n_heads)?;
        let (value, beta) = (of_chunk(&value)?, of_chunk(&beta)?);
        let sums = of_chunk(&decays)?.f_cumsum(-1, Kind::Float)?;
        let within = pairwise(&sums)?;
        let sums = sums.f_unsqueeze(-1)?;
        let since_start = sums.f_exp()?;
        let weighed = key.f_mul(&beta)?;
        let transposed = key.f_transpose(-1, -2)?;
        let system = weighed.f_matmul(&transposed)?.f_mul_(&within)?;
        let right = [value.f_mul(&beta)?, weighed.f_mul(&since_start)?];
        let solved =
            system.f_linalg_solve_triangular(&Tensor::f_cat(&right, -1)?, false, true, true)?;
        let seen = solved.f_narrow(-1, size[3], config.state_dim as i64)?;
        let taken = (solved.f_narrow(-1, 0, size[3])?).f_sub(&seen.f_matmul(&state)?)?;
        let scores = query.f_matmul(&transposed)?.f_mul_(&within)?;
        let earlier = query.f_mul(&since_start)?.f_matmul(&state)?;
        mixed.push(scores.f_matmul(&taken)?.f_add_(&earlier)?);
        let last = sums.f_narrow(2, len - 1, 1)?;
        let to_end = key.f_mul(&last.f_sub(&sums)?.f_exp()?)?;
        let added = to_end.f_transpose(-1, -2)?.f_matmul(&taken)?;
        state = state.f_mul(&last.f_exp()?)?.f_add_(&added)?;
    }
    if let Some(cache) = cache {
        cache.state = Some(state);
    }
    let mixed = Tensor::f_cat(&mixed, 2)?.f_transpose(1, 2)?;
    let mixed = norm.forward(&mixed)?.f_flatten(2, 3)?;
    let mut gate = inputs.gate;
    Ok(mixed.f_mul(&gate.f_silu_()?)?)
}

/// `x` with vectors of length 1.
fn unit(x: &Tensor) -> Result<Tensor, Error> {
    let squares = x.f_square()?;
    let mut sums = squares.f_sum_dim_intlist(-1i64, true, Kind::Float)?;
    Ok(x.f_mul(&sums.f_add_scalar_(1e-6)?.f_rsqrt_()?)?)
}
