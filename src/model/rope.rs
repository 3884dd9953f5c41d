//! Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) and the ways to stretch them that configs name.
//!
//! Frequencies are computed by libtorch in float32, as transformers 5.23 does: at position 10,000 the last bit of a
//! frequency is a thousandth of a radian.

use super::config::{Config, RopeScaling};
use super::{Compute, Error};
use crate::kernels::{self, rotary, rotary::Tables};
use crate::tensor::{bf16_slice, bf16_slice_mut, on_cpu_in_bf16};
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// Cosines and sines of positions `0..seq_len`, in the kind of the forward pass.
///
/// A head's dimensions `i` and `i + head_dim / 2` turn together: `x cos + swap(x) sin` with the halves of `x` swapped
/// and the first half of `sin` negated.
#[derive(Debug)]
pub struct Rope {
    /// `[seq_len, 1, head_dim]`
    cos: Tensor,
    /// `[seq_len, 1, head_dim]`
    sin: Tensor,
}

impl Rope {
    pub(super) fn new(config: &Config, compute: Compute, seq_len: usize) -> Result<Self, Error> {
        let (frequencies, attention_factor) = frequencies(config, seq_len)?;
        let positions = Tensor::f_arange(seq_len as i64, (Kind::Float, Device::Cpu))?;
        let angles = positions.f_view([-1, 1, 1])?.f_mul(&frequencies)?;
        let cos = angles.f_cos()?.f_mul_scalar(attention_factor)?;
        let sin = angles.f_sin()?.f_mul_scalar(attention_factor)?;
        Ok(Self {
            cos: compute.place(&Tensor::f_cat(&[&cos, &cos], 2)?)?,
            sin: compute.place(&Tensor::f_cat(&[&sin.f_neg()?, &sin], 2)?)?,
        })
    }

    /// Turns `x` `[B, T, H, head_dim]`, whose first token stands at position `start`. `x` may be overwritten.
    pub(super) fn rotate(&self, mut x: Tensor, start: usize) -> Result<Tensor, Error> {
        let size = x.size();
        let (n_tokens, half) = (size[1], size[3] / 2);
        let (end, seq_len) = (start + n_tokens as usize, self.cos.size()[0] as usize);
        if end > seq_len {
            return Err(Error::Position {
                position: end - 1,
                seq_len,
            });
        }
        let rows = |table: &Tensor| table.f_narrow(0, start as i64, n_tokens);
        if on_cpu_in_bf16(&x) && x.numel() > 0 {
            x = x.f_contiguous()?;
            let (cos, sin) = (rows(&self.cos)?, rows(&self.sin)?);
            let tables = Tables {
                cos: bf16_slice(&cos),
                sin: bf16_slice(&sin),
                head_dim: size[3] as usize,
            };
            let width = (size[2] * size[3]) as usize;
            rotary::rotate(kernels::chosen(), bf16_slice_mut(&mut x), width, tables);
            return Ok(x);
        }
        let swapped = x.f_roll(half, 3)?;
        Ok(swapped
            .f_mul(&rows(&self.sin)?)?
            .f_addcmul_(&x, &rows(&self.cos)?)?)
    }
}

/// Radians per position for each pair of a head's dimensions, `[head_dim / 2]` float32, and what cosines and sines are
/// multiplied by.
fn frequencies(config: &Config, seq_len: usize) -> Result<(Tensor, f64), Error> {
    let theta = config.rope.theta;
    let dim = config.head_dim as f64;
    Ok(match config.rope.scaling {
        RopeScaling::Default => (base_frequencies(theta, config)?, 1.0),
        RopeScaling::Linear { factor } => {
            (base_frequencies(theta, config)?.f_div_scalar(factor)?, 1.0)
        }
        RopeScaling::Dynamic { factor } => {
            let max = config.max_position_embeddings as f64;
            let stretch = factor * max.max(seq_len as f64) / max - (factor - 1.0);
            (
                base_frequencies(theta * stretch.powf(dim / (dim - 2.0)), config)?,
                1.0,
            )
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let plain = base_frequencies(theta, config)?;
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
            let plain = base_frequencies(theta, config)?;
            let ramp = Tensor::f_arange(plain.size()[0], (Kind::Float, Device::Cpu))?
                .f_sub_scalar(low)?
                .f_div_scalar(high - low)?
                .f_clamp(0.0, 1.0)?;
            (
                plain.f_lerp_tensor(&plain.f_div_scalar(factor)?, &ramp)?,
                attention_factor,
            )
        }
    })
}

/// `theta^(-2i / head_dim)`
fn base_frequencies(theta: f64, config: &Config) -> Result<Tensor, Error> {
    let dim = config.head_dim as i64;
    let exponents = Tensor::f_arange_start_step(0, dim, 2, (Kind::Float, Device::Cpu))?
        .f_div_scalar(dim as f64)?;
    Ok(Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()?)
}
