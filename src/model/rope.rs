//! Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) and the ways to stretch them that configs name.
//!
//! Frequencies are computed by libtorch in float32, as transformers 5.23 does: at position 10,000 the last bit of a
//! frequency is a thousandth of a radian.

use super::config::{RopeConfig, RopeScaling};
use super::{Compute, Error};
use crate::kernels::{self, rotary, rotary::Tables};
use crate::tensor::{bf16_slice, bf16_slice_mut, on_cpu_in_bf16};
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// Where each token of some windows stands, on each of three axes or, where they have one, on all: `[windows, tokens]`
/// float32 each.
pub(super) type Axes = [Tensor; 3];

/// Cosines and sines for the first `dim` dimensions of a head, in the kind of the forward pass.
///
/// `x cos + swap(x) sin`, with the two numbers of each pair swapped, and `sin` negated for the first of them.
#[derive(Debug)]
pub(super) struct Rope {
    neighbours: bool,
    /// `[windows, seq_len, 1, dim]`: one window stands for all where they are alike.
    cos: Tensor,
    /// The same shape.
    sin: Tensor,
}

impl Rope {
    /// For positions `0..seq_len`, or for those of `axes`.
    pub(super) fn new(
        rope: &RopeConfig,
        max_position_embeddings: usize,
        compute: Compute,
        seq_len: usize,
        axes: Option<&Axes>,
    ) -> Result<Self, Error> {
        let (frequencies, attention_factor) = frequencies(rope, max_position_embeddings, seq_len)?;
        let positions = match axes {
            None => Tensor::f_arange(seq_len as i64, (Kind::Float, Device::Cpu))?
                .f_view([1, -1, 1, 1])?,
            // Each frequency has its axis: `[windows, tokens, 1, dim / 2]`.
            Some(axes) => {
                let own = rope.axes.iter().map(|&axis| &axes[axis]);
                Tensor::f_stack(&own.collect::<Vec<_>>(), 2)?.f_unsqueeze(2)?
            }
        };
        let angles = positions.f_mul(&frequencies)?;
        let cos = angles.f_cos()?.f_mul_scalar(attention_factor)?;
        let sin = angles.f_sin()?.f_mul_scalar(attention_factor)?;
        let neighbours = rope.neighbours;
        let both = |first: &Tensor, second: &Tensor| {
            if neighbours {
                Tensor::f_stack(&[first, second], 4)?.f_flatten(3, 4)
            } else {
                Tensor::f_cat(&[first, second], 3)
            }
        };
        Ok(Self {
            neighbours,
            cos: compute.place(&both(&cos, &cos)?)?,
            sin: compute.place(&both(&sin.f_neg()?, &sin)?)?,
        })
    }

    /// Turns `x` `[B, T, H, head_dim]`, whose first token stands at position `start`. `x` may be overwritten.
    pub(super) fn rotate(&self, mut x: Tensor, start: usize) -> Result<Tensor, Error> {
        let size = x.size();
        let (n_tokens, head_dim) = (size[1], size[3]);
        let (end, seq_len) = (start + n_tokens as usize, self.cos.size()[1] as usize);
        if end > seq_len {
            return Err(Error::Position {
                position: end - 1,
                seq_len,
            });
        }
        let (n_windows, dim) = (self.cos.size()[0], self.cos.size()[3]);
        let rows = |table: &Tensor| table.f_narrow(1, start as i64, n_tokens);
        let (cos, sin) = (rows(&self.cos)?, rows(&self.sin)?);
        if on_cpu_in_bf16(&x) && !self.neighbours && x.numel() > 0 {
            x = x.f_contiguous()?;
            let (cos, sin) = (cos.f_contiguous()?, sin.f_contiguous()?);
            let heads = [size[2] as usize, head_dim as usize];
            let (x_len, table_len) = (x.numel() / n_windows as usize, (n_tokens * dim) as usize);
            let tables = bf16_slice(&cos)
                .chunks(table_len)
                .zip(bf16_slice(&sin).chunks(table_len));
            for (x, (cos, sin)) in bf16_slice_mut(&mut x).chunks_mut(x_len).zip(tables) {
                let dim = dim as usize;
                rotary::rotate(kernels::chosen(), x, heads, Tables { cos, sin, dim });
            }
            return Ok(x);
        }
        let turning = x.f_narrow(3, 0, dim)?;
        let swapped = if self.neighbours {
            let pairs = turning.f_unflatten(3, [dim / 2, 2])?;
            pairs.f_flip([4])?.f_flatten(3, 4)?
        } else {
            turning.f_roll(dim / 2, 3)?
        };
        let turned = swapped.f_mul(&sin)?.f_addcmul_(&turning, &cos)?;
        if dim == head_dim {
            return Ok(turned);
        }
        let rest = x.f_narrow(3, dim, head_dim - dim)?;
        Ok(Tensor::f_cat(&[&turned, &rest], 3)?)
    }
}

/// Radians per position for each pair of dimensions, `[dim / 2]` float32, and what cosines and sines are multiplied by.
fn frequencies(
    rope: &RopeConfig,
    max_position_embeddings: usize,
    seq_len: usize,
) -> Result<(Tensor, f64), Error> {
    let theta = rope.theta;
    let dim = rope.dim as f64;
    Ok(match rope.scaling {
        RopeScaling::Default => (base_frequencies(theta, rope.dim)?, 1.0),
        RopeScaling::Linear { factor } => (
            base_frequencies(theta, rope.dim)?.f_div_scalar(factor)?,
            1.0,
        ),
        RopeScaling::Proportional { pairs, factor } => {
            let whole = base_frequencies(theta, rope.dim)?.f_div_scalar(factor)?;
            let (pairs, n_still) = (pairs as i64, rope.dim as i64 / 2 - pairs as i64);
            let turning = whole.f_narrow(0, 0, pairs)?;
            (turning.f_constant_pad_nd([0, n_still])?, 1.0)
        }
        RopeScaling::Dynamic { factor } => {
            let max = max_position_embeddings as f64;
            let stretch = factor * max.max(seq_len as f64) / max - (factor - 1.0);
            (
                base_frequencies(theta * stretch.powf(dim / (dim - 2.0)), rope.dim)?,
                1.0,
            )
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let plain = base_frequencies(theta, rope.dim)?;
            let wavelengths = plain.f_reciprocal()?.f_mul_scalar(2.0 * PI)?;
            let slow = plain.f_div_scalar(factor)?;
            let smooth = wavelengths
                .f_reciprocal()?
                .f_mul_scalar(original)?
                .f_sub_scalar(low_freq_factor)?
                .f_div_scalar(high_freq_factor - low_freq_factor)?;
            let between = slow.f_lerp_tensor(&plain, &smooth)?;
            let long = wavelengths.f_gt(original / low_freq_factor)?;
            let short = wavelengths.f_lt(original / high_freq_factor)?;
            (
                slow.f_where_self(&long, &plain.f_where_self(&short, &between)?)?,
                1.0,
            )
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings: original,
            truncate,
        } => {
            // The dimension that turns this many times over the original context.
            let dimension =
                |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let low = low.max(0.0);
            let mut high = high.min(dim - 1.0);
            if (high - low).abs() < f64::EPSILON {
                high += 0.001;
            }
            let plain = base_frequencies(theta, rope.dim)?;
            let ramp = Tensor::f_arange(plain.size()[0], (Kind::Float, Device::Cpu))?
                .f_sub_scalar(low)?
                .f_div_scalar(high - low)?
                .f_clamp(0.0, 1.0)?;
            (
                plain.f_lerp_tensor(&plain.f_div_scalar(factor)?, &ramp)?,
                attention_factor,
            )
        }
        RopeScaling::LongRope {
            ref short_factor,
            ref long_factor,
            short_attention_factor,
            long_attention_factor,
            original_max_position_embeddings: original,
        } => {
            let (factors, attention_factor) = if seq_len as f64 > original {
                (long_factor, long_attention_factor)
            } else {
                (short_factor, short_attention_factor)
            };
            let factors: Vec<f32> = factors.iter().map(|&factor| factor as f32).collect();
            let plain = base_frequencies(theta, rope.dim)?;
            (
                plain.f_div(&Tensor::f_from_slice(&factors)?)?,
                attention_factor,
            )
        }
    })
}

/// `theta^(-2i / dim)`
fn base_frequencies(theta: f64, dim: usize) -> Result<Tensor, Error> {
    let dim = dim as i64;
    let exponents = Tensor::f_arange_start_step(0, dim, 2, (Kind::Float, Device::Cpu))?
        .f_div_scalar(dim as f64)?;
    Ok(Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()?)
}
