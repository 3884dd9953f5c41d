//! One layer of a tower: attention of all patches to all, or of those of a window, and an MLP.

use super::config::TowerConfig;
use super::place::PatchPlaces;
use super::rows::TowerScales;
use crate::model::activation::{activate, gated};
use crate::model::linear::Linear;
use crate::model::{Compute, Error, Norm, NormKind, Weights};
use tch::Tensor;

#[derive(Debug)]
pub struct TowerLayer {
    norms: [Norm; 2],
    /// One linear for queries, keys and values, or three.
    inputs: Vec<Linear>,
    /// Norms of whole queries and keys.
    query_key_norms: Option<[Norm; 2]>,
    output: Linear,
    mlp: Vec<Linear>,
    scales: Option<[Tensor; 2]>,
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
        let norm = |kind, eps, name: &str| {
            Norm::load(
                weights,
                compute,
                kind,
                eps,
                &format!("{prefix}{name}"),
                width,
            )
        };
        let attention = &row.attention;
        let linears = config.layer_linears().into_iter();
        let mut inputs = linears
            .map(|(name, shape, bias)| {
                load_linear(weights, compute, &format!("{prefix}{name}"), shape, bias)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mlp = inputs.split_off(attention.inputs.len() + 1);
        let output = inputs.pop().expect("attention's output");
        let query_key_norms = attention.norms.filter(|_| config.query_key_norms);
        Ok(Self {
            norms: [
                norm(config.norm_kind, config.eps, row.norm_names[0])?,
                norm(config.norm_kind, config.eps, row.norm_names[1])?,
            ],
            inputs,
            query_key_norms: match query_key_norms {
                None => None,
                // Whatever the others are, and with an epsilon of their own.
                Some([query, key]) => Some([
                    norm(NormKind::Rms, 1e-6, query)?,
                    norm(NormKind::Rms, 1e-6, key)?,
                ]),
            },
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
        let scaled = |y: Tensor, which: usize| match &self.scales {
            None => Ok(y),
            Some(scales) => y.f_mul(&scales[which]),
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
        let [query, key] = match &self.query_key_norms {
            None => [query, key],
            Some([first, second]) => [first.forward(&query)?, second.forward(&key)?],
        };
        let heads = |x: &Tensor| -> Result<Tensor, Error> {
            let size = x.size();
            let head_dim = config.head_dim() as i64;
            Ok(x.f_reshape([size[0], size[1], -1, head_dim])?)
        };
        let query = places.turned(&heads(&query)?)?.f_transpose(1, 2)?;
        let key = places.turned(&heads(&key)?)?.f_transpose(1, 2)?;
        let value = heads(&value)?.f_transpose(1, 2)?;
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
                None,
                false,
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
