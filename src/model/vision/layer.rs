//! One layer of a tower: attention of all patches to all, or of those of a window, and an MLP.

use super::config::TowerConfig;
use super::place::PatchPlaces;
use super::rows::{TowerQueryKeyNorms, TowerScales};
use crate::model::activation::{activate, gated};
use crate::model::linear::Linear;
use crate::model::{Compute, Error, Norm, NormKind, Weights};
use tch::Tensor;

#[derive(Debug)]
pub struct TowerLayer {
    norms: [Norm; 2],
    norms_after: Option<[Norm; 2]>,
    /// One linear for queries, keys and values, or three.
    inputs: Vec<Bounded>,
    /// Norms of queries and keys.
    query_key_norms: Option<[Norm; 2]>,
    /// Of each head's values.
    value_norm: Option<Norm>,
    output: Bounded,
    mlp: Vec<Bounded>,
    scales: Option<[Tensor; 2]>,
}

/// A linear, and where it is bounded, the least and the greatest that it reads, and that it makes.
#[derive(Debug)]
struct Bounded {
    linear: Linear,
    bounds: Option<[f64; 4]>,
}

impl Bounded {
    fn load(
        config: &TowerConfig,
        weights: &dyn Weights,
        compute: Compute,
        name: &str,
        (shape, bias): ([usize; 2], bool),
    ) -> Result<Self, Error> {
        let linear = load_linear(weights, compute, name, shape, bias)?;
        // The bounds are the module's around the linear.
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        let bound = |suffix| -> Result<f64, Error> {
            let bound = weights.tensor(&format!("{module}.{suffix}"), &[])?;
            Ok(bound.f_double_value(&[])?)
        };
        let bounds = config.bounded.then(|| {
            Ok::<_, Error>([
                bound("input_min")?,
                bound("input_max")?,
                bound("output_min")?,
                bound("output_max")?,
            ])
        });
        Ok(Self {
            linear,
            bounds: bounds.transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        match self.bounds {
            None => self.linear.forward(x),
            Some([input_min, input_max, output_min, output_max]) => {
                let made = self.linear.forward(&x.f_clamp(input_min, input_max)?)?;
                Ok(made.f_clamp(output_min, output_max)?)
            }
        }
    }
}

impl TowerLayer {
    pub fn load(
        config: &TowerConfig,
        weights: &dyn Weights,
        compute: Compute,
        prefix: &str,
    ) -> Result<Self, Error> {
        let row = config.row;
        let width = config.width;
        let norm = |kind, eps, name: &str, len| {
            let name = format!("{prefix}{name}");
            Norm::load(weights, compute, kind, eps, &name, len)
        };
        let own = |name| norm(config.norm_kind, config.eps, name, width);
        let attention = &row.attention;
        let linears = config.layer_linears().into_iter();
        let mut inputs = linears
            .map(|(name, shape, bias)| {
                let name = format!("{prefix}{name}");
                Bounded::load(config, weights, compute, &name, (shape, bias))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mlp = inputs.split_off(attention.inputs.len() + 1);
        let output = inputs.pop().expect("attention's output");
        let head = |name| norm(config.norm_kind, config.eps, name, config.head_dim);
        // Whatever the others are, and with an epsilon of their own.
        let whole = |name| norm(NormKind::Rms, 1e-6, name, width);
        let query_key_norms = match attention.norms {
            TowerQueryKeyNorms::Whole([query, key], _) if config.query_key_norms => {
                Some([whole(query)?, whole(key)?])
            }
            TowerQueryKeyNorms::Heads([query, key]) => Some([head(query)?, head(key)?]),
            _ => None,
        };
        let by_head = matches!(attention.norms, TowerQueryKeyNorms::Heads(_));
        let after = row.norms_after;
        Ok(Self {
            norms: [own(row.norm_names[0])?, own(row.norm_names[1])?],
            norms_after: after
                .map(|[first, second]| Ok::<_, Error>([own(first)?, own(second)?]))
                .transpose()?,
            inputs,
            query_key_norms,
            value_norm: by_head.then(|| Norm::plain(config.eps)),
            output,
            mlp,
            scales: match row.scales {
                None => None,
                Some(scales) => {
                    let scale = |name, len| -> Result<Tensor, Error> {
                        compute.place(&weights.tensor(&format!("{prefix}{name}"), &[len])?)
                    };
                    Some(match scales {
                        TowerScales::Channels([first, second]) => {
                            [scale(first, width)?, scale(second, width)?]
                        }
                        TowerScales::Gates([first, second]) => {
                            [scale(first, 1)?.f_tanh()?, scale(second, 1)?.f_tanh()?]
                        }
                    })
                }
            },
        })
    }

    /// `x` is `[tiles, tokens, width]`.
    pub fn forward(
        &self,
        config: &TowerConfig,
        x: &Tensor,
        places: &PatchPlaces,
        index: usize,
    ) -> Result<Tensor, Error> {
        let scaled = |y: Tensor, which: usize| -> Result<Tensor, Error> {
            let y = match &self.norms_after {
                None => y,
                Some(norms) => norms[which].forward(&y)?,
            };
            Ok(match &self.scales {
                None => y,
                Some(scales) => y.f_mul(&scales[which])?,
            })
        };
        let attended = self.attend(config, &self.norms[0].forward(x)?, places, index)?;
        let x = scaled(attended, 0)?.f_add_(x)?;
        let read = self.norms[1].forward(&x)?;
        let made = match &self.mlp[..] {
            [up, down] => down.forward(&activate(config.activation, up.forward(&read)?)?)?,
            [gate, up, down] => {
                let inner = gated(config.activation, gate.forward(&read)?, &up.forward(&read)?)?;
                down.forward(&inner)?
            }
            _ => unreachable!("two or three linears"),
        };
        Ok(scaled(made, 1)?.f_add_(&x)?)
    }

    fn attend(
        &self,
        config: &TowerConfig,
        x: &Tensor,
        places: &PatchPlaces,
        index: usize,
    ) -> Result<Tensor, Error> {
        let parts = match &self.inputs[..] {
            [all] => all.forward(x)?.f_chunk(3, -1)?,
            three => (three.iter().map(|linear| linear.forward(x))).collect::<Result<_, _>>()?,
        };
        let [query, key, value] = <[Tensor; 3]>::try_from(parts).expect("three parts");
        let heads = |x: &Tensor| -> Result<Tensor, Error> {
            let size = x.size();
            Ok(x.f_reshape([size[0], size[1], -1, config.head_dim as i64])?)
        };
        let by_head = self.value_norm.is_some();
        let normed = |x: Tensor, which: usize| match &self.query_key_norms {
            None => heads(&x),
            Some(norms) if by_head => norms[which].forward(&heads(&x)?),
            Some(norms) => heads(&norms[which].forward(&x)?),
        };
        let query = places.turned(&normed(query, 0)?)?.f_transpose(1, 2)?;
        let key = places.turned(&normed(key, 1)?)?.f_transpose(1, 2)?;
        let value = heads(&value)?;
        let value = match &self.value_norm {
            None => value,
            Some(norm) => norm.forward(&value)?,
        };
        let value = value.f_transpose(1, 2)?;
        let (scale, grouped) = (
            config.row.attention.scale,
            config.n_kv_heads != config.n_heads,
        );
        let mut mixed = Vec::new();
        let mut start = 0;
        for len in places.spans(index, query.size()[2]) {
            let [query, key, value] = [&query, &key, &value].map(|x| x.f_narrow(2, start, len));
            let (query, key, value) = (query?, key?, value?);
            mixed.push(Tensor::f_scaled_dot_product_attention(
                &query,
                &key,
                &value,
                places.mask(),
                0.0,
                false,
                scale,
                grouped,
            )?);
            start += len;
        }
        let mixed = Tensor::f_cat(&mixed, 2)?
            .f_transpose(1, 2)?
            .f_flatten(2, 3)?;
        self.output.forward(&mixed)
    }
}

/// The linear `name` of `shape` `[out, in]`, where `compute` says.
pub fn load_linear(
    weights: &dyn Weights,
    compute: Compute,
    name: &str,
    shape: [usize; 2],
    bias: bool,
) -> Result<Linear, Error> {
    let bias = bias.then(|| weights.tensor(&format!("{name}.bias"), &shape[..1]));
    let bias = bias.transpose()?;
    Ok(Linear {
        weight: compute.place(&weights.tensor(&format!("{name}.weight"), &shape)?)?,
        bias: bias.map(|bias| compute.place(&bias)).transpose()?,
    })
}
