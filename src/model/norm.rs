//! Norms of the last dimension, with the roundings that transformers makes: root mean square norms (Zhang and Sennrich
//! 2019, arXiv:1910.07467) and layer norms (Ba et al. 2016, arXiv:1607.06450).

use super::{Compute, Error, NormKind, Weights};
use crate::kernels;
use crate::tensor::{bf16_slice, bf16_slice_mut, f32_slice, on_cpu_in_bf16};
use tch::{Kind, Tensor};

/// A norm with what it stores.
#[derive(Debug)]
pub struct Norm {
    kind: NormKind,
    eps: f64,
    /// Runs of the numbers that are normalized each by itself.
    groups: i64,
    /// `[len]` float32, as it is stored.
    pub weight: Option<Tensor>,
    /// `[len]` float32.
    pub bias: Option<Tensor>,
}

impl Norm {
    /// The norm whose tensors begin with `name`, `[len]` each.
    pub(super) fn load(
        weights: &dyn Weights,
        compute: Compute,
        kind: NormKind,
        eps: f64,
        name: &str,
        len: usize,
    ) -> Result<Self, Error> {
        let load = |suffix: &str| -> Result<Tensor, Error> {
            let name = match suffix {
                "weight" => kind.weight_name(name),
                _ => format!("{name}.{suffix}"),
            };
            let tensor = weights.tensor(&name, &[len])?;
            Ok(tensor.f_to_device(compute.device)?.f_to_kind(Kind::Float)?)
        };
        Ok(Self {
            kind,
            eps,
            groups: 1,
            weight: kind.has_weight().then(|| load("weight")).transpose()?,
            bias: kind.has_bias().then(|| load("bias")).transpose()?,
        })
    }

    /// A root mean square norm that stores nothing.
    pub(super) fn plain(eps: f64) -> Self {
        Self {
            kind: NormKind::RmsLast,
            eps,
            groups: 1,
            weight: None,
            bias: None,
        }
    }

    /// The same, of a root mean square, for each of so many runs of the numbers by itself.
    pub(super) fn in_groups(self, groups: usize) -> Self {
        Self {
            groups: groups as i64,
            ..self
        }
    }

    /// Stores `weight` `[len]` instead, and a bias that is divided by `divisors`.
    pub fn divide(&mut self, weight: &[f32], divisors: &[f32]) -> Result<(), Error> {
        let place = |values: &[f32], like: &Tensor| {
            Tensor::f_from_slice(values)?.f_to_device(like.device())
        };
        if let Some(stored) = &mut self.weight {
            *stored = place(weight, stored)?;
        }
        if let Some(bias) = &mut self.bias {
            *bias = bias.f_div(&place(divisors, bias)?)?;
        }
        Ok(())
    }

    /// Stores what `other` does, where `compute` says.
    pub fn set(&mut self, other: &Self, compute: Compute) -> Result<(), Error> {
        let placed = |tensor: &Option<Tensor>| {
            let tensor = tensor.as_ref();
            tensor
                .map(|tensor| tensor.f_to_device(compute.device))
                .transpose()
        };
        (self.weight, self.bias) = (placed(&other.weight)?, placed(&other.bias)?);
        Ok(())
    }

    /// Normalizes the last dimension of `x` in float32; the result has the kind of `x`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        if self.kind.subtracts_mean() {
            return self.layer_norm(x);
        }
        let weight = if let Some(weight) = &self.weight {
            weight
        } else {
            let len = *x.size().last().expect("a tensor with dimensions");
            &Tensor::f_ones([len], (Kind::Float, x.device()))?
        };
        if self.groups > 1 {
            return self.of_groups(x, weight);
        }
        if on_cpu_in_bf16(x) {
            return Ok(self.in_one_pass(x, weight)?);
        }
        let wide = x.f_to_kind(Kind::Float)?;
        // The 2-norm and its square are a third of the time of libtorch's composite rms_norm on a CPU.
        let inverse_rms = wide
            .f_norm_scalaropt_dim(2.0, -1, true)?
            .f_square_()?
            .f_div_scalar_(weight.numel() as f64)?
            .f_add_scalar_(self.eps)?
            .f_rsqrt_()?;
        let mut normalized = wide.f_mul(&inverse_rms)?;
        Ok(if self.kind == NormKind::Rms {
            normalized
                .f_to_kind(x.kind())?
                .f_mul_(&weight.f_to_kind(x.kind())?)?
        } else {
            normalized
                .f_mul_(&self.gain(weight)?)?
                .f_to_kind(x.kind())?
        })
    }

    /// What a root mean square norm multiplies by, from what it stores.
    fn gain(&self, weight: &Tensor) -> Result<Tensor, tch::TchError> {
        match self.kind {
            NormKind::RmsOverRoot => weight.f_div_scalar((weight.numel() as f64).sqrt()),
            kind => weight.f_add_scalar(f64::from(kind.offset())),
        }
    }

    /// The root mean square norm of each group.
    fn of_groups(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, Error> {
        let wide = x
            .f_to_kind(Kind::Float)?
            .f_unflatten(-1, [self.groups, -1])?;
        let squares = wide.f_square()?.f_mean_dim(-1i64, true, Kind::Float)?;
        let inverse_rms = squares.f_add_scalar(self.eps)?.f_rsqrt()?;
        let normalized = wide.f_mul(&inverse_rms)?.f_flatten(-2, -1)?;
        let gain = self.gain(weight)?;
        Ok(normalized.f_mul(&gain)?.f_to_kind(x.kind())?)
    }

    fn layer_norm(&self, x: &Tensor) -> Result<Tensor, Error> {
        let offset = f64::from(self.kind.offset());
        let gain = self
            .weight
            .as_ref()
            .map(|weight| weight.f_add_scalar(offset));
        let len = *x.size().last().expect("a tensor with dimensions");
        let normalized = (x.f_to_kind(Kind::Float)?).f_layer_norm(
            [len],
            gain.transpose()?,
            self.bias.as_ref().map(Tensor::shallow_clone),
            self.eps,
            false,
        )?;
        Ok(normalized.f_to_kind(x.kind())?)
    }

    /// The same by a kernel that reads and writes each number once, where libtorch makes float32 copies.
    fn in_one_pass(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, tch::TchError> {
        let x = x.f_contiguous()?;
        let weight = self.gain(weight)?;
        let mut normalized = x.f_empty_like()?;
        let norm = kernels::norm::Norm {
            weight: f32_slice(&weight),
            eps: self.eps as f32,
            round_first: self.kind == NormKind::Rms,
        };
        let out = bf16_slice_mut(&mut normalized);
        kernels::norm::rms_norm(kernels::chosen(), bf16_slice(&x), norm, out);
        Ok(normalized)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use tch::Device;

    fn norm(kind: NormKind, weight: &Tensor, eps: f64) -> Norm {
        Norm {
            kind,
            eps,
            groups: 1,
            weight: kind.has_weight().then(|| weight.shallow_clone()),
            bias: kind.has_bias().then(|| weight * 0.5),
        }
    }

    #[test]
    fn the_weight_is_used_as_the_kind_says() {
        let x = Tensor::from_slice(&[3.0f32, -4.0]).view([1, 2]);
        let weight = Tensor::from_slice(&[0.5f32, 2.0]);
        let (rms, root) = (12.5f32.sqrt(), 2f32.sqrt());
        for (kind, expected) in [
            (NormKind::Rms, [3.0 * 0.5 / rms, -4.0 * 2.0 / rms]),
            (NormKind::RmsLast, [3.0 * 0.5 / rms, -4.0 * 2.0 / rms]),
            (NormKind::RmsOffset, [3.0 * 1.5 / rms, -4.0 * 3.0 / rms]),
            (NormKind::RmsOverRoot, [1.5 / rms / root, -8.0 / rms / root]),
            (NormKind::Layer, [0.5 + 0.25, -2.0 + 1.0]),
            (NormKind::LayerWeight, [0.5, -2.0]),
            (NormKind::LayerOffset, [1.5 + 0.25, -3.0 + 1.0]),
            (NormKind::LayerPlain, [1.0, -1.0]),
        ] {
            let found = norm(kind, &weight, 0.0).forward(&x).unwrap();
            let error = (found - Tensor::from_slice(&expected)).abs().max();
            assert!(error.double_value(&[]) < 1e-6, "{kind:?}");
        }
        assert_eq!(x, Tensor::from_slice(&[3.0f32, -4.0]).view([1, 2]));
    }

    /// The kernel's bfloat16 against libtorch's float32.
    #[test]
    fn bfloat16_rows_are_normalized_as_float32_ones() {
        tch::manual_seed(4);
        let options = (Kind::Float, Device::Cpu);
        let x = (Tensor::randn([3, 5, 70], options) * 3.0).to_kind(Kind::BFloat16);
        let weight = Tensor::randn([70], options);
        for kind in [
            NormKind::Rms,
            NormKind::RmsLast,
            NormKind::RmsOffset,
            NormKind::Layer,
        ] {
            let norm = norm(kind, &weight, 1e-5);
            // Every other token: not contiguous.
            let x = x.slice(1, 0, 5, 2);
            let found = norm.forward(&x).unwrap();
            assert_eq!(found.kind(), Kind::BFloat16);
            let expected = norm.forward(&x.to_kind(Kind::Float)).unwrap();
            // Two roundings of 2^-8 each.
            let found = found.to_kind(Kind::Float);
            assert!(found.allclose(&expected, 8e-3, 1e-6, false), "{kind:?}");
        }
    }
}
