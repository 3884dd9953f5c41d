//! One linear layer in float.

use super::{Compute, Error, LinearPlan, Weights};
use tch::{Device, Kind, Tensor};

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

    /// The linear in float32, for one that stays in float: what it computes may decide much, and what is written is made of it.
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

    /// The same numbers in another kind.
    pub fn in_kind(&self, kind: Kind) -> Result<Self, Error> {
        let bias = self.bias.as_ref();
        Ok(Self {
            weight: self.weight.f_to_kind(kind)?,
            bias: bias.map(|bias| bias.f_to_kind(kind)).transpose()?,
        })
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

    /// [`Self::forward`] of any number of tokens, `[tokens, in]`: on the CPU zeros are added up to one of a few numbers.
    ///
    /// libtorch keeps what it makes for each shape that it multiplies, half a MiB a shape, and experts see a new number of
    /// tokens each time.
    pub fn forward_tokens(&self, x: &Tensor) -> Result<Tensor, Error> {
        let n_tokens = x.size()[0];
        let missing = usual_length(n_tokens) - n_tokens;
        if x.device() != Device::Cpu || missing == 0 {
            return self.forward(x);
        }
        let padded = x.f_constant_pad_nd([0, 0, 0, missing])?;
        Ok(self.forward(&padded)?.f_narrow(0, 0, n_tokens)?)
    }

    /// `x` is `[.., in]`, the result `[.., out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

/// The next number of tokens that is a power of two or one of three between it and the next.
fn usual_length(n_tokens: i64) -> i64 {
    let step = (n_tokens.max(1) as u64).next_power_of_two() as i64 / 8;
    let step = step.max(8);
    (n_tokens + step - 1) / step * step
}

#[cfg(test)]
mod tests {
    use super::usual_length;

    #[test]
    fn lengths_are_few_and_not_much_longer() {
        let lengths: std::collections::HashSet<i64> = (1..=4096).map(usual_length).collect();
        assert!(lengths.len() < 40, "{}", lengths.len());
        for n_tokens in 1..=4096 {
            let length = usual_length(n_tokens);
            assert!((n_tokens..=n_tokens + n_tokens / 4 + 8).contains(&length));
        }
    }
}
