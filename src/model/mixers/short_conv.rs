//! A convolution of a few tokens between two gates.

use super::{KvCache, Mixer};
use crate::model::Error;
use tch::Tensor;

/// `c * convolution(b * x)`, of `[B, T, width]` each.
pub(super) fn mix(
    mixer: &Mixer,
    [b, c, x]: [Tensor; 3],
    cache: Option<&mut KvCache>,
) -> Result<Tensor, Error> {
    let mixed = mixer.convolve(&b.f_mul(&x)?, cache)?;
    Ok(mixed.f_mul(&c)?)
}
