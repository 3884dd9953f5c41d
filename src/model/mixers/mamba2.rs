//! State space duality: a head's state decays and takes in `X` under `B`, and is read with `C`.

use super::{KvCache, Mixer, chunks, for_heads, heads, pairwise, state_before};
use crate::model::Error;
use tch::{Kind, Tensor};

/// What the linears made, `[B, T, ..]` float32.
pub(super) struct Inputs {
    /// `X`, `B` and `C`, before their convolution.
    pub read: Tensor,
    pub gate: Tensor,
    pub step: Tensor,
}

pub(super) fn mix(
    mixer: &Mixer,
    inputs: Inputs,
    mut cache: Option<&mut KvCache>,
) -> Result<Tensor, Error> {
    let config = &mixer.config;
    let widths = [config.width(), config.state_width(), config.state_width()];
    let [x, b, c] = mixer.read(&inputs.read, widths, cache.as_deref_mut())?;
    let x = heads(&x, config.head_dim)?;
    let (b, c) = (heads(&b, config.state_dim)?, heads(&c, config.state_dim)?);
    let [steps, decays] = mixer.steps(&inputs.step)?;
    let steps = steps.f_unsqueeze(-1)?;

    let size = x.size();
    let shape = [size[0], size[1], config.state_dim as i64, size[3]];
    let mut state = state_before(cache.as_deref(), shape, &x)?;
    let mut mixed = Vec::new();
    for (start, len) in chunks(size[2]) {
        let of_chunk = |x: &Tensor| x.f_narrow(2, start, len);
        let taken = of_chunk(&x)?.f_mul(&of_chunk(&steps)?)?;
        let (b, c) = (of_chunk(&b)?, of_chunk(&c)?);
        let scores = for_heads(&c.f_matmul(&b.f_transpose(-1, -2)?)?, config.n_heads)?;
        let (b, c) = (
            for_heads(&b, config.n_heads)?,
            for_heads(&c, config.n_heads)?,
        );
        let sums = of_chunk(&decays)?.f_cumsum(-1, Kind::Float)?;
        let scores = scores.f_mul(&pairwise(&sums)?)?;
        let sums = sums.f_unsqueeze(-1)?;
        let earlier = c.f_mul(&sums.f_exp()?)?.f_matmul(&state)?;
        mixed.push(scores.f_matmul(&taken)?.f_add_(&earlier)?);
        let last = sums.f_narrow(2, len - 1, 1)?;
        let to_end = b.f_mul(&last.f_sub(&sums)?.f_exp()?)?;
        let added = to_end.f_transpose(-1, -2)?.f_matmul(&taken)?;
        state = state.f_mul(&last.f_exp()?)?.f_add_(&added)?;
    }
    if let Some(cache) = cache {
        cache.state = Some(state);
    }
    let skip = mixer.skip.as_ref().expect("every head has a skip");
    let mixed = Tensor::f_cat(&mixed, 2)?.f_add(&x.f_mul(&skip.f_unsqueeze(-1)?)?)?;
    let mixed = mixed.f_transpose(1, 2)?.f_flatten(2, 3)?;
    let mut gate = inputs.gate;
    Ok(mixed.f_mul(&gate.f_silu_()?)?)
}
