//! Root mean square norms (Zhang and Sennrich 2019, arXiv:1910.07467), with the roundings that transformers makes.

use super::{Error, NormKind};
use tch::{Kind, Tensor};

/// Normalizes the last dimension of `x` in float32; the result has the kind of `x`. `weight` is float32.
pub(super) fn rms_norm(
    kind: NormKind,
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<Tensor, Error> {
    let shape = [weight.size()[0]];
    let wide = x.f_to_kind(Kind::Float)?;
    Ok(match kind {
        NormKind::Rms if x.kind() == Kind::Float => wide.f_rms_norm(shape, Some(weight), eps)?,
        NormKind::Rms => {
            let normalized = wide.f_rms_norm(shape, None::<&Tensor>, eps)?;
            normalized
                .f_to_kind(x.kind())?
                .f_mul_(&weight.f_to_kind(x.kind())?)?
        }
        NormKind::RmsOffset => {
            let weight = weight.f_add_scalar(1.0)?;
            wide.f_rms_norm(shape, Some(&weight), eps)?
                .f_to_kind(x.kind())?
        }
    })
}
