//! What a model sees with, in eight bits, where the caller wants it: rounded to nearest, for no activations of it are kept.

use std::ops::Range;

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::checkpoint::Writer;
use crate::cli::settings::{self, Settings};
use crate::model::Weights;
use crate::quant::{self, GroupSize, QuantizedLinear, Scheme};
use crate::report::TowerReport;
use crate::weights::ModelDir;

/// The linears of the tower's layers.
#[derive(Debug, Default)]
pub struct Tower {
    /// Names and shapes `[out, in]` of those that are quantized.
    pub linears: Vec<(String, [usize; 2])>,
    /// Names of those whose width the group size does not divide: they stay in float.
    misfits: Vec<String>,
}

impl Tower {
    /// Those of the model of `source` that are to be quantized; none unless `settings` ask for it.
    ///
    /// # Errors
    /// A model whose tower is not known.
    pub fn new(source: &ModelDir, settings: &Settings) -> Result<Self, settings::Error> {
        let mut tower = Self::default();
        if !settings.selection.vision {
            return Ok(tower);
        }
        let vision = source.model.vision.as_ref();
        let vision = vision.ok_or_else(|| settings::Error::NoTower {
            model_type: source.model.model_type().to_owned(),
        })?;
        for (name, shape) in vision.linears(source) {
            if settings.selection.leaves_in_float(&name) {
                continue;
            }
            match settings.scheme.group_size {
                GroupSize::Columns(columns) if !shape[1].is_multiple_of(columns) => {
                    tower.misfits.push(name);
                }
                _ => tower.linears.push((name, shape)),
            }
        }
        Ok(tower)
    }

    /// Whether this tensor is the weight of one that is quantized.
    pub fn has(&self, tensor: &str) -> bool {
        let name = tensor.strip_suffix(".weight");
        name.is_some_and(|name| self.linears.iter().any(|linear| linear.0 == name))
    }

    /// Rounds and writes them, one after the other; `None` where there are none.
    pub fn write(
        &self,
        writer: &Writer,
        source: &ModelDir,
        settings: &Settings,
    ) -> Result<Option<TowerReport>> {
        let (mut change, mut size) = (0.0, 0.0);
        for (name, shape) in &self.linears {
            let weight = source.tensor(&format!("{name}.weight"), shape)?;
            let weight = weight.f_to_kind(Kind::Float)?;
            let quantized = rounded(&weight, *shape, settings.scheme)?;
            let squares = |x: &Tensor| -> Result<f64> {
                Ok(x.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?)
            };
            change += squares(&quantized.dequantize_tensor()?.f_sub(&weight)?)?;
            size += squares(&weight)?;
            for (suffix, bytes) in settings.format.pack(&quantized) {
                writer.write(&format!("{name}.{suffix}"), &bytes)?;
            }
        }
        Ok((!self.linears.is_empty()).then(|| TowerReport {
            linears: self.linears.len(),
            relative_weight_error: if size > 0.0 { change / size } else { 0.0 },
            in_float: self.misfits.clone(),
        }))
    }
}

fn rounded(weight: &Tensor, [out, inp]: [usize; 2], scheme: Scheme) -> Result<QuantizedLinear> {
    let values = crate::tensor::to_f32(weight)?;
    Ok(quant::rtn(&values, out, inp, scheme))
}

/// The weights of `source` with the tower as it is written, so that the language model is calibrated on what it will be shown.
pub struct AsWritten<'a> {
    pub source: &'a ModelDir,
    pub tower: &'a Tower,
    pub scheme: Scheme,
}

impl Weights for AsWritten<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.source.tensor(name, shape)?;
        match *shape {
            [out, inp] if self.tower.has(name) => {
                Ok(rounded(&tensor, [out, inp], self.scheme)?.dequantize_tensor()?)
            }
            _ => Ok(tensor),
        }
    }

    fn rows(
        &self,
        name: &str,
        shape: [usize; 2],
        ids: &[u32],
        columns: Range<usize>,
    ) -> Result<Tensor> {
        self.source.rows(name, shape, ids, columns)
    }

    fn part(&self, name: &str, shape: &[usize], index: usize, parts: usize) -> Result<Tensor> {
        self.source.part(name, shape, index, parts)
    }

    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }
}
