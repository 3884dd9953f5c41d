//! Where a checkpoint has the weight and the bias of a linear.

use super::{Error, LinearPlan, Weights};
use crate::tensor::mxfp4;
use tch::Tensor;

/// How a linear's tensors are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Its weight is a tensor of its own, `[out, in]`.
    Own,
    /// Its weight is a tensor of its own, `[in, out]`.
    Transposed,
    /// It is a part of what stands for several linears.
    Stacked(Stacked),
}

/// One of the equal parts of tensors that hold the linears of all experts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stacked {
    pub weight: String,
    /// Of the whole tensor.
    pub weight_shape: Vec<usize>,
    /// `[parts, rows]`
    pub bias: Option<String>,
    /// Parts that lie one after the other, and which of them is this one's.
    pub parts: usize,
    pub index: usize,
    /// Whether a part is `[in, rows]`, not `[rows, in]`.
    pub transposed: bool,
    pub packing: Packing,
    /// Rows of a part, this linear's and others'.
    pub rows: usize,
    /// The first row that is this linear's, and how far the next one is.
    pub first: usize,
    pub step: usize,
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Float,
    /// As two tensors, `_blocks` `[parts, rows, in / 32, 16]` and `_scales` `[parts, rows, in / 32]`, never transposed.
    Mxfp4,
}

impl LinearPlan {
    /// The tensors that its weight is read from, with their shapes.
    pub fn weight_sources(&self) -> Vec<(String, Vec<usize>)> {
        let [out, inp] = self.shape();
        match &self.stored {
            Stored::Own => vec![(self.weight_name(), vec![out, inp])],
            Stored::Transposed => vec![(self.weight_name(), vec![inp, out])],
            Stored::Stacked(stacked) => match stacked.packing {
                Packing::Float => vec![(stacked.weight.clone(), stacked.weight_shape.clone())],
                Packing::Mxfp4 => {
                    let scales = vec![stacked.parts, stacked.rows, inp / 32];
                    let blocks = [&scales[..], &[16]].concat();
                    vec![
                        (format!("{}_blocks", stacked.weight), blocks),
                        (format!("{}_scales", stacked.weight), scales),
                    ]
                }
            },
        }
    }

    /// The tensor that its bias is read from, with its shape; where it has one.
    pub fn bias_source(&self) -> Option<(String, Vec<usize>)> {
        self.has_bias.then(|| match &self.stored {
            Stored::Stacked(Stacked {
                bias: Some(bias),
                parts,
                rows,
                ..
            }) => (bias.clone(), vec![*parts, *rows]),
            _ => (self.bias_name(), vec![self.out_features]),
        })
    }

    /// Its weight, `[out, in]` on the CPU in any float kind.
    pub fn weight(&self, weights: &dyn Weights) -> Result<Tensor, Error> {
        let [out, inp] = self.shape();
        if weights.is_packed(&self.name) {
            return Ok(weights.tensor(&self.weight_name(), &[out, inp])?);
        }
        let sources = self.weight_sources();
        let (name, shape) = &sources[0];
        let Stored::Stacked(stacked) = &self.stored else {
            let weight = weights.tensor(name, shape)?;
            return Ok(match self.stored {
                Stored::Transposed => weight.f_tr()?.f_contiguous()?,
                _ => weight,
            });
        };
        let parts = sources
            .iter()
            .map(|(name, shape)| weights.part(name, shape, stacked.index, stacked.parts));
        let rows = match &parts.collect::<Result<Vec<_>, _>>()?[..] {
            [blocks, scales] => mxfp4::decode(blocks, scales)?.f_view([-1, inp as i64])?,
            [part, ..] if stacked.transposed => part.f_view([inp as i64, -1])?.f_tr()?,
            [part, ..] => part.f_view([-1, inp as i64])?,
            [] => unreachable!("a weight has a source"),
        };
        Ok(stacked.own(&rows, out)?)
    }

    /// Its bias, `[out]` on the CPU in any float kind; where it has one.
    pub fn bias(&self, weights: &dyn Weights) -> Result<Option<Tensor>, Error> {
        let Some((name, shape)) = self.bias_source() else {
            return Ok(None);
        };
        Ok(Some(match &self.stored {
            Stored::Stacked(stacked) if !weights.is_packed(&self.name) => {
                let part = weights.part(&name, &shape, stacked.index, stacked.parts)?;
                stacked.own(&part, self.out_features)?
            }
            _ => weights.tensor(&self.bias_name(), &[self.out_features])?,
        }))
    }
}

impl Stacked {
    /// This linear's of a part's rows.
    fn own(&self, rows: &Tensor, out: usize) -> Result<Tensor, tch::TchError> {
        let first = self.first as i64;
        let end = first + (out * self.step) as i64;
        rows.f_slice(0, first, end.min(self.rows as i64), self.step as i64)?
            .f_contiguous()
    }
}
