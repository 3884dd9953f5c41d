//! One linear layer in float.

use super::{Compute, Error, Model, Role, Weights};
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
    /// The linear of a layer, as the checkpoint has it.
    pub fn load(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
        layer: usize,
        role: Role,
    ) -> Result<Self, Error> {
        let name = model.linear_name(layer, role);
        let (rows, columns) = model.linear_shape(role);
        let weight = weights.tensor(&format!("{name}.weight"), &[rows, columns])?;
        let bias = if model.has_bias(role) {
            Some(compute.place(&weights.tensor(&format!("{name}.bias"), &[rows])?)?)
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
