//! Root mean square norms (Zhang and Sennrich 2019, arXiv:1910.07467), with the roundings that transformers makes.

use super::{Error, NormKind};
use crate::kernels::{self, norm::Norm};
use crate::tensor::{bf16_slice, bf16_slice_mut, f32_slice, on_cpu_in_bf16};
use tch::{Kind, Tensor};

/// Normalizes the last dimension of `x` in float32; the result has the kind of `x`. `weight` is float32.
pub(super) fn rms_norm(
    kind: NormKind,
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<Tensor, Error> {
    if on_cpu_in_bf16(x) {
        return Ok(in_one_pass(kind, x, weight, eps)?);
    }
    let wide = x.f_to_kind(Kind::Float)?;
    // The 2-norm and its square are a third of the time of libtorch's composite rms_norm on a CPU.
    let inverse_rms = wide
        .f_norm_scalaropt_dim(2.0, -1, true)?
        .f_square_()?
        .f_div_scalar_(weight.numel() as f64)?
        .f_add_scalar_(eps)?
        .f_rsqrt_()?;
    let mut normalized = wide.f_mul(&inverse_rms)?;
    Ok(match kind {
        NormKind::Rms => normalized
            .f_to_kind(x.kind())?
            .f_mul_(&weight.f_to_kind(x.kind())?)?,
        NormKind::RmsOffset => normalized
            .f_mul_(&weight.f_add_scalar(1.0)?)?
            .f_to_kind(x.kind())?,
    })
}

/// The same by a kernel that reads and writes each number once, where libtorch makes float32 copies.
fn in_one_pass(
    kind: NormKind,
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<Tensor, tch::TchError> {
    let x = x.f_contiguous()?;
    let weight = weight.f_add_scalar(f64::from(kind.offset()))?;
    let mut normalized = x.f_empty_like()?;
    let norm = Norm {
        weight: f32_slice(&weight),
        eps: eps as f32,
        round_first: kind == NormKind::Rms,
    };
    let out = bf16_slice_mut(&mut normalized);
    kernels::norm::rms_norm(kernels::chosen(), bf16_slice(&x), norm, out);
    Ok(normalized)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_weight_is_used_as_the_kind_says() {
        let x = Tensor::from_slice(&[3.0f32, -4.0]).view([1, 2]);
        let weight = Tensor::from_slice(&[0.5f32, 2.0]);
        let rms = 12.5f32.sqrt();
        for (kind, expected) in [
            (NormKind::Rms, [3.0 * 0.5 / rms, -4.0 * 2.0 / rms]),
            (NormKind::RmsOffset, [3.0 * 1.5 / rms, -4.0 * 3.0 / rms]),
        ] {
            let found = rms_norm(kind, &x, &weight, 0.0).unwrap();
            let error = (found - Tensor::from_slice(&expected)).abs().max();
            assert!(error.double_value(&[]) < 1e-6);
        }
        assert_eq!(x, Tensor::from_slice(&[3.0f32, -4.0]).view([1, 2]));
    }

    /// The kernel's bfloat16 against libtorch's float32.
    #[test]
    fn bfloat16_rows_are_normalized_as_float32_ones() {
        tch::manual_seed(4);
        let options = (Kind::Float, tch::Device::Cpu);
        let x = (Tensor::randn([3, 5, 70], options) * 3.0).to_kind(Kind::BFloat16);
        let weight = Tensor::randn([70], options);
        for kind in [NormKind::Rms, NormKind::RmsOffset] {
            // Every other token: not contiguous.
            let x = x.slice(1, 0, 5, 2);
            let found = rms_norm(kind, &x, &weight, 1e-5).unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            let expected = rms_norm(kind, &x.to_kind(Kind::Float), &weight, 1e-5).unwrap();
            // Two roundings of 2^-8 each.
            assert!(
                found
                    .to_kind(Kind::Float)
                    .allclose(&expected, 8e-3, 1e-6, false)
            );
        }
    }
}
