//! One linear layer in float.

use super::{Compute, Error, LinearPlan, Weights};
use tch::{Kind, Tensor};

/// `y = x Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]` in the kind of the forward pass.
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Linear {
    /// The linear as the checkpoint has it.
    pub fn load(
        linear: &LinearPlan,
        weights: &dyn Weights,
        compute: Compute,
    ) -> Result<Self, Error> {
        let bias = linear.bias(weights)?;
        Ok(Self {
            weight: compute.place(&linear.weight(weights)?)?,
            bias: bias.map(|bias| compute.place(&bias)).transpose()?,
        })
    }

    /// The linear in float32: one that stays in float is small, and what it computes decides much.
    pub fn load_wide(
        linear: &LinearPlan,
        weights: &dyn Weights,
        compute: Compute,
    ) -> Result<Self, Error> {
        let wide = Compute {
            kind: Kind::Float,
            ..compute
        };
        Self::load(linear, weights, wide)
    }

    /// Multiplies the weight's columns by `scale` `[in]`.
    pub fn scale_columns(&mut self, scale: &[f32]) -> Result<(), Error> {
        let scale = Tensor::f_from_slice(scale)?.f_to_device(self.weight.device())?;
        let _ = self.weight.f_mul_(&scale.f_to_kind(self.weight.kind())?)?;
        Ok(())
    }

    /// Divides the weight's rows and the bias by `divisors` `[out]`.
    pub fn divide_rows(&mut self, divisors: &[f32]) -> Result<(), Error> {
        let kind = self.weight.kind();
        let divisors = Tensor::f_from_slice(divisors)?.f_to_device(self.weight.device())?;
        let divided = |tensor: &Tensor, divisors: &Tensor| {
            (tensor.f_to_kind(Kind::Float)?.f_div(divisors)?).f_to_kind(kind)
        };
        self.weight = divided(&self.weight, &divisors.f_unsqueeze(1)?)?;
        let bias = self.bias.as_ref();
        self.bias = bias.map(|bias| divided(bias, &divisors)).transpose()?;
        Ok(())
    }

    /// `x` is `[.., in]`, the result `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}
