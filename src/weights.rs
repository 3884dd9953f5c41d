//! A model's weights as its forward pass wants them: from a plain checkpoint, or dequantized on the way.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use tch::Tensor;

use crate::checkpoint::Checkpoint;
use crate::fault::InputError;
use crate::model::{Model, Weights};
use crate::pack::{self, PackedTensor, QuantizedFormat};

/// An opened model directory: its configuration, its family, and its weights.
pub struct ModelDir {
    pub config: Value,
    pub model: Model,
    pub checkpoint: Checkpoint,
    /// How the linears are packed, where they are.
    pub quantized: Option<QuantizedFormat>,
}

impl ModelDir {
    /// Reads config.json and the safetensors headers of `dir`; no weight is read yet.
    pub fn open(dir: &Path) -> Result<Self> {
        anyhow::ensure!(
            dir.is_dir(),
            InputError::new(
                dir,
                "no such directory",
                "name a Hugging Face model directory"
            )
        );
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|error| {
            InputError::new(&path, error, "the model directory needs its config.json")
        })?;
        let config: Value = serde_json::from_str(&text).map_err(|error| {
            InputError::new(&path, error, "config.json must be JSON; download it again")
        })?;
        let checkpoint = Checkpoint::open(dir)?;
        Self::new(config, checkpoint).with_context(|| path.display().to_string())
    }

    /// What `config`, which is or will be its config.json, makes of a checkpoint.
    pub fn new(config: Value, checkpoint: Checkpoint) -> Result<Self> {
        let mut model = Model::from_config(&config)?;
        let quantized = QuantizedFormat::from_model_config(&config)?;
        model.fit(&|name| Some(checkpoint.info(name)?.shape.clone()));
        Ok(Self {
            config,
            model,
            checkpoint,
            quantized,
        })
    }

    /// Whether the tensor is there with the shape that the configuration asks for.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), InputError> {
        match self.checkpoint.info(name) {
            None => Err(InputError::new(
                self.checkpoint.dir(),
                format!("no tensor {name} {shape:?} in its safetensors files"),
                "the download is incomplete, or config.json belongs to another model",
            )),
            Some(info) if info.shape != shape => Err(InputError::new(
                &info.file,
                format!(
                    "{name} has shape {:?}, config.json asks for {shape:?}",
                    info.shape
                ),
                "use the config.json that belongs to these weights",
            )),
            Some(_) => Ok(()),
        }
    }
}

impl Weights for ModelDir {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let (Some(format), Some(module)) = (&self.quantized, name.strip_suffix(".weight"))
            && self.checkpoint.contains(&format!("{module}.qweight"))
        {
            let packed = |suffix| {
                let name = format!("{module}.{suffix}");
                let info = self.checkpoint.info(&name)?;
                Some(PackedTensor {
                    dtype: info.dtype,
                    shape: &info.shape,
                    bytes: self.checkpoint.bytes(&name).ok()?,
                })
            };
            let linear = pack::unpack(format, shape[0], shape[1], packed)
                .with_context(|| module.to_owned())?;
            for suffix in pack::SUFFIXES {
                self.checkpoint.release(&format!("{module}.{suffix}"));
            }
            return Ok(linear.dequantize_tensor()?);
        }
        Ok(self.checkpoint.tensor(name, shape)?)
    }

    fn rows(
        &self,
        name: &str,
        shape: [usize; 2],
        ids: &[u32],
        columns: Range<usize>,
    ) -> Result<Tensor> {
        Ok(self.checkpoint.rows(name, shape, ids, columns)?)
    }

    fn part(&self, name: &str, shape: &[usize], index: usize, parts: usize) -> Result<Tensor> {
        Ok(self.checkpoint.part(name, shape, index, parts)?)
    }

    fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }
}
