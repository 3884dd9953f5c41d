//! The functions inside an MLP.

use super::{Activation, Error};
use crate::kernels::{self, gated::silu_mul};
use crate::tensor::{bf16_slice, bf16_slice_mut, on_cpu_in_bf16};
use tch::{Kind, Tensor};

/// `activation(gate) * up`, in the memory of `gate`.
pub(super) fn gated(
    activation: Activation,
    mut gate: Tensor,
    up: &Tensor,
) -> Result<Tensor, Error> {
    gate = gate.f_contiguous()?;
    if let Activation::ClampedSwiglu { alpha, limit } = activation {
        let gate = gate.f_clamp_max_(limit)?;
        let factor = up.f_clamp(-limit, limit)?.f_add_scalar_(1.0)?;
        let turned_on = gate.f_mul_scalar(alpha)?.f_sigmoid_()?;
        return Ok(gate.f_mul(&turned_on)?.f_mul_(&factor)?);
    }
    if activation == Activation::Silu && on_cpu_in_bf16(&gate) {
        let up = up.f_contiguous()?;
        silu_mul(
            kernels::chosen(),
            bf16_slice_mut(&mut gate),
            bf16_slice(&up),
        );
        return Ok(gate);
    }
    Ok(activate(activation, gate)?.f_mul_(up)?)
}

/// xIELU with a layer's `alpha_p`, `alpha_n`, `beta` and `eps`.
pub(super) fn xielu(
    [alpha_p, alpha_n, beta, eps]: &[Tensor; 4],
    x: &Tensor,
) -> Result<Tensor, Error> {
    let wide = x.f_to_kind(Kind::Float)?;
    let linear = wide.f_mul(beta)?;
    let above = (wide.f_square()?.f_mul(&alpha_p.f_softplus()?)?).f_add(&linear)?;
    let slope = alpha_n.f_softplus()?.f_add(beta)?;
    let below = wide.f_minimum(eps)?.f_expm1()?.f_sub(&wide)?;
    let below = below.f_mul(&slope)?.f_add(&linear)?;
    let activated = above.f_where_self(&wide.f_gt(0)?, &below)?;
    Ok(activated.f_to_kind(x.kind())?)
}

/// `activation(x)`, in the memory of `x`.
pub(super) fn activate(activation: Activation, mut x: Tensor) -> Result<Tensor, Error> {
    Ok(match activation {
        Activation::Silu => x.f_silu_()?,
        Activation::Gelu => x.f_gelu_("none")?,
        Activation::QuickGelu => {
            let turned_on = x.f_mul_scalar(1.702)?.f_sigmoid_()?;
            x.f_mul_(&turned_on)?
        }
        Activation::GeluTanh => x.f_gelu_("tanh")?,
        Activation::Relu => x.f_relu_()?,
        Activation::Relu2 => x.f_relu_()?.f_square_()?,
        Activation::ClampedSwiglu { .. } => unreachable!("it takes a gate"),
        Activation::Xielu => unreachable!("it takes a layer's numbers"),
    })
}
