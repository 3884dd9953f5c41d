//! One linear layer in float.

use super::{Compute, Error, LinearPlan, Weights};
use tch::Tensor;

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
        let weight = weights.tensor(&linear.weight_name(), &linear.shape())?;
        let bias = if linear.has_bias {
            let bias = weights.tensor(&linear.bias_name(), &[linear.out_features])?;
            Some(compute.place(&bias)?)
        } else {
            None
        };
        Ok(Self {
            weight: compute.place(&weight)?,
            bias,
        })
    }

    /// `x` is `[.., in]`, the result `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}
