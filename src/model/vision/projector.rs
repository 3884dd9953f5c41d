//! From a tower's features to embeddings of the language model, step by step.

use super::config::TowerConfig;
use super::layer::load_linear;
use super::place::Grid;
use super::rows::{Eps, Step, StepBias, Width};
use crate::model::activation::{activate, gated};
use crate::model::config::activation;
use crate::model::keys::Keys;
use crate::model::linear::Linear;
use crate::model::{Activation, Compute, Error, Norm, Weights};
use tch::{Kind, Tensor};

/// Steps with their weights.
#[derive(Debug)]
pub struct Projector(Vec<Loaded>);

#[derive(Debug)]
enum Loaded {
    Norm(Norm),
    Linear(Linear),
    Activation(Activation),
    Gated(Activation, Box<[Linear; 3]>),
    /// Side of the squares, and whether their channels are outermost.
    Merge(usize, bool),
    /// Side of the squares.
    Pool(usize),
    /// What the features are multiplied by, then what is taken off them and what they are multiplied by, `[width]` float32 each.
    Standardize(f64, Option<[Tensor; 2]>),
}

/// What the steps need to know of the model.
pub struct Surroundings<'a> {
    pub tower: &'a TowerConfig,
    /// The whole configuration.
    pub keys: Keys<'a>,
    pub text_width: usize,
    pub text_eps: f64,
}

impl Projector {
    /// Reads the tensors whose names begin with `prefix`; the features are `width` wide.
    pub fn load(
        steps: &[Step],
        surroundings: &Surroundings<'_>,
        weights: &dyn Weights,
        compute: Compute,
        prefix: &str,
        mut width: usize,
    ) -> Result<Self, Error> {
        let Surroundings {
            tower,
            keys,
            text_width,
            text_eps,
        } = surroundings;
        let epsilon = |eps| match eps {
            Eps::Is(eps) => Ok(eps),
            Eps::Key(key) => {
                let keys = tower.keys();
                keys.positive(key)?.ok_or_else(|| keys.missing(key))
            }
            Eps::Text => Ok(*text_eps),
        };
        let mut loaded = Vec::new();
        for &step in steps {
            let wide = |out: Width, from: usize| match out {
                Width::Input => from,
                Width::Tower => tower.width,
                Width::Text => *text_width,
            };
            let norm = |name: &str, kind, eps| {
                Norm::load(
                    weights,
                    compute,
                    kind,
                    eps,
                    &format!("{prefix}{name}"),
                    width,
                )
            };
            let linear = |name: &str, shape, bias| {
                load_linear(weights, compute, &format!("{prefix}{name}"), shape, bias)
            };
            loaded.push(match step {
                Step::TowerNorm(name) => Loaded::Norm(norm(name, tower.norm_kind, tower.eps)?),
                Step::Norm(name, kind, eps) => Loaded::Norm(norm(name, kind, epsilon(eps)?)?),
                Step::Linear(name, out, bias) => {
                    let bias = match bias {
                        StepBias::Always => true,
                        StepBias::Never => false,
                        StepBias::Key(key, absent) => keys.bool(key)?.unwrap_or(absent),
                    };
                    let out = wide(out, width);
                    let made = linear(name, [out, width], bias)?;
                    width = out;
                    Loaded::Linear(made)
                }
                Step::Convolution(name, out) => {
                    let side = tower.squares.unwrap_or(1);
                    let out = wide(out, width);
                    let shape = [out, width / (side * side), side, side];
                    let name = format!("{prefix}{name}");
                    let kernel = weights.tensor(&format!("{name}.weight"), &shape)?;
                    let bias = weights.tensor(&format!("{name}.bias"), &[out])?;
                    width = out;
                    Loaded::Linear(Linear {
                        weight: compute.place(&kernel.f_flatten(1, 3)?)?,
                        bias: Some(compute.place(&bias)?),
                    })
                }
                Step::Matrix(name, out) => {
                    let out = wide(out, width);
                    let matrix = weights.tensor(&format!("{prefix}{name}"), &[width, out])?;
                    width = out;
                    Loaded::Linear(Linear {
                        weight: compute.place(&matrix)?.f_transpose(0, 1)?,
                        bias: None,
                    })
                }
                Step::Gelu => Loaded::Activation(Activation::Gelu),
                Step::Activation(key) => Loaded::Activation(activation(keys, key)?),
                Step::Gated([gate, up, down]) => {
                    let inner = tower.keys().size("intermediate_size")?;
                    Loaded::Gated(
                        tower.activation,
                        Box::new([
                            linear(gate, [inner, width], false)?,
                            linear(up, [inner, width], false)?,
                            linear(down, [width, inner], false)?,
                        ]),
                    )
                }
                Step::Merge | Step::MergeChannels => {
                    let side = merge_side(tower, keys)?;
                    width *= side * side;
                    Loaded::Merge(side, matches!(step, Step::MergeChannels))
                }
                Step::PoolBy(key) => Loaded::Pool(tower.keys().size(key)?),
                Step::PlainNorm(eps) => Loaded::Norm(Norm::plain(epsilon(eps)?)),
                Step::Standardize(stored) => {
                    let number = |name: &str| -> Result<Tensor, Error> {
                        let name = format!("{prefix}{stored}{name}");
                        let number = weights.tensor(&name, &[width])?;
                        Ok(number.f_to_device(compute.device)?.f_to_kind(Kind::Float)?)
                    };
                    let is_shifted = tower.keys().bool("standardize")?.unwrap_or(false);
                    let shift = is_shifted
                        .then(|| Ok::<_, Error>([number("std_bias")?, number("std_scale")?]));
                    Loaded::Standardize((width as f64).sqrt(), shift.transpose()?)
                }
                Step::Pool => {
                    let key = "mm_tokens_per_image";
                    let kept = (keys.size(key)? as f64).sqrt() as usize;
                    let side = tower.image_size.unwrap_or(0) / tower.patch_size;
                    if kept == 0 || !side.is_multiple_of(kept) {
                        return Err(keys.invalid(
                            key,
                            format!("the square of a divisor of {side}, the patches of a side"),
                        ));
                    }
                    Loaded::Pool(side / kept)
                }
            });
        }
        Ok(Self(loaded))
    }

    /// `x` is `[tiles, patches, width]`; so is the result.
    pub fn forward(&self, mut x: Tensor, grid: Grid) -> Result<Tensor, Error> {
        for step in &self.0 {
            x = match step {
                Loaded::Norm(norm) => norm.forward(&x)?,
                Loaded::Linear(linear) => linear.forward(&x)?,
                Loaded::Activation(activation) => activate(*activation, x)?,
                Loaded::Gated(activation, linears) => {
                    let [gate, up, down] = &**linears;
                    down.forward(&gated(*activation, gate.forward(&x)?, &up.forward(&x)?)?)?
                }
                Loaded::Merge(side, channels_outermost) => {
                    merged(&x, grid, *side, *channels_outermost)?
                }
                Loaded::Standardize(factor, shift) => {
                    let kind = x.kind();
                    let mut wide = x.f_to_kind(Kind::Float)?.f_mul_scalar(*factor)?;
                    if let Some([bias, scale]) = shift {
                        wide = wide.f_sub_(bias)?.f_mul_(scale)?;
                    }
                    wide.f_to_kind(kind)?
                }
                Loaded::Pool(side) => {
                    let (side, size) = (*side as i64, x.size());
                    let shape = [size[0], size[2], grid.rows as i64, grid.columns as i64];
                    let square = x.f_transpose(1, 2)?.f_reshape(shape)?;
                    let pooled = square.f_avg_pool2d(side, side, 0, false, true, None::<i64>)?;
                    pooled.f_flatten(2, 3)?.f_transpose(1, 2)?
                }
            };
        }
        Ok(x)
    }
}

/// The side of the squares of patches that become one.
fn merge_side(tower: &TowerConfig, keys: &Keys<'_>) -> Result<usize, Error> {
    if let Some(side) = tower.squares {
        return Ok(side);
    }
    let key = "downsample_ratio";
    if let Some(ratio) = keys.positive(key)? {
        let side = (1.0 / ratio) as usize;
        return if side == 0 {
            Err(keys.invalid(key, "at most 1"))
        } else {
            Ok(side)
        };
    }
    let keys_of_side = ["scale_factor", "spatial_merge_size"];
    let found = keys_of_side.iter().find(|key| keys.get(key).is_some());
    keys.size(found.unwrap_or(&"scale_factor"))
}

/// `[tiles, patches / side^2, width * side^2]`
fn merged(x: &Tensor, grid: Grid, side: usize, channels_outermost: bool) -> Result<Tensor, Error> {
    let (tiles, width) = (x.size()[0], x.size()[2]);
    let (rows, columns) = (grid.rows / side, grid.columns / side);
    if !grid.rows.is_multiple_of(side) || !grid.columns.is_multiple_of(side) {
        return Err(Error::Image(format!(
            "{} rows of {} patches are not made of squares of {side}",
            grid.rows, grid.columns
        )));
    }
    let [side, rows, columns] = [side, rows, columns].map(|n| n as i64);
    let squares = if grid.squares.is_some() {
        x.f_reshape([tiles, rows * columns, side * side, width])?
    } else {
        x.f_reshape([tiles, rows, side, columns, side, width])?
            .f_transpose(2, 3)?
            .f_reshape([tiles, rows * columns, side * side, width])?
    };
    let squares = if channels_outermost {
        squares.f_transpose(2, 3)?
    } else {
        squares
    };
    Ok(squares.f_reshape([tiles, rows * columns, side * side * width])?)
}
