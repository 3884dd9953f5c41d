//! Weights by formula, so that golden files and tests need not store any: the same numbers in Rust and in Python.
//!
//! Value `i` of a tensor is `centre + width * (2 u - 1)`, where `u` in `[0, 1)` is a 24-bit hash of the tensor's name and
//! `i`. `tests/golden/generate/formula.py` computes the same to the bit.

use super::{Model, Weights};
use crate::tensor;
use anyhow::Context as _;
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tch::{Kind, Tensor};

/// The tensors of a tiny model, made when they are asked for.
#[derive(Debug)]
pub struct FormulaWeights {
    kind: Kind,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl FormulaWeights {
    /// The weights of `model`, rounded to `kind`.
    pub fn new(model: &Model, kind: Kind) -> Self {
        let shapes = model.tensors().into_iter().collect();
        Self { kind, shapes }
    }

    /// Weights of these names and shapes, rounded to `kind`.
    pub fn of(shapes: BTreeMap<String, Vec<usize>>, kind: Kind) -> Self {
        Self { kind, shapes }
    }

    /// Writes a checkpoint: `config.json` as it is given, and `model.safetensors`.
    pub fn save(&self, config: &serde_json::Value, directory: &Path) -> anyhow::Result<()> {
        let dtype = match self.kind {
            Kind::BFloat16 => safetensors::Dtype::BF16,
            Kind::Half => safetensors::Dtype::F16,
            _ => safetensors::Dtype::F32,
        };
        let bytes = self
            .shapes
            .iter()
            .map(|(name, shape)| Ok(tensor::to_bytes(&self.tensor(name, shape)?)?))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let views = self
            .shapes
            .iter()
            .zip(&bytes)
            .map(|((name, shape), bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("config.json"), config.to_string())?;
        let path = directory.join("model.safetensors");
        safetensors::serialize_to_file(views, None, &path)
            .with_context(|| path.display().to_string())
    }
}

impl Weights for FormulaWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor> {
        let own = self
            .shapes
            .get(name)
            .with_context(|| format!("no tensor {name}"))?;
        anyhow::ensure!(own == shape, "{name} is {own:?}, not {shape:?}");
        Ok(tensor::from_f32(&values(name, shape), shape)?.f_to_kind(self.kind)?)
    }

    fn rows(
        &self,
        name: &str,
        shape: [usize; 2],
        ids: &[u32],
        columns: Range<usize>,
    ) -> anyhow::Result<Tensor> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let rows = self
            .tensor(name, &shape)?
            .f_index_select(0, &Tensor::f_from_slice(&ids)?)?;
        Ok(rows.f_narrow(1, columns.start as i64, columns.len() as i64)?)
    }

    fn part(
        &self,
        name: &str,
        shape: &[usize],
        index: usize,
        parts: usize,
    ) -> anyhow::Result<Tensor> {
        let whole = self.tensor(name, shape)?.view([parts as i64, -1]);
        Ok(whole.get(index as i64))
    }

    fn contains(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }
}

/// Norms and factors lie around 1, biases within a half, what corrects a choice of experts within a tenth, bounds around
/// -1 and 1, embeddings within 1, other matrices within `2 / sqrt(columns)`.
pub(crate) fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let columns = shape.last().copied().unwrap_or(1) as f32;
    let mut parts = name.rsplit('.');
    let (last, module) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let is_norm = module.contains("norm") || module.starts_with("ln_");
    let (centre, width) = match last {
        "weight" if is_norm => (1.0, 0.5),
        "scale" | "per_expert_scale" | "layer_scalar" => (1.0, 0.5),
        _ if last.ends_with("_min") => (-1.0, 0.5),
        _ if last.ends_with("_max") => (1.0, 0.5),
        "bias" => (0.0, 0.5),
        "e_score_correction_bias" | "expert_bias" => (0.0, 0.1),
        _ if name.ends_with("embed_tokens.weight") || name.ends_with("embed_in.weight") => {
            (0.0, 1.0)
        }
        _ => (0.0, 2.0 / columns.sqrt()),
    };
    hashes(name)
        .take(shape.iter().product())
        .map(|hash| {
            let unit = (hash >> 8) as f32 / (1 << 24) as f32;
            centre + width * (2.0 * unit - 1.0)
        })
        .collect()
}

/// Token ids that depend on `name` only.
pub fn token_ids(name: &str, count: usize, vocab_size: usize) -> Vec<u32> {
    hashes(name)
        .take(count)
        .map(|hash| hash % vocab_size as u32)
        .collect()
}

/// MurmurHash3's finalizer over a sequence that starts at the name's FNV-1a hash.
fn hashes(name: &str) -> impl Iterator<Item = u32> {
    let seed = name.bytes().fold(0x811C_9DC5u32, |state, byte| {
        (state ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (0u32..).map(move |i| {
        let mut x = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9));
        x = (x ^ (x >> 16)).wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE35);
        x ^ (x >> 16)
    })
}
