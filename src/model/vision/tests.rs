//! Towers and projectors against transformers.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::model::formula;
use crate::model::tests::{F32, golden, read, relative_error};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::ops::Range;

/// Weights by formula under the names that transformers saves.
struct Named(BTreeMap<String, Vec<usize>>);

impl Weights for Named {
    fn tensor(&self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor> {
        let own = self.0.get(name).map(Vec::as_slice);
        anyhow::ensure!(own == Some(shape), "{name} is {own:?}, not {shape:?}");
        Ok(crate::tensor::from_f32(
            &formula::values(name, shape),
            shape,
        )?)
    }

    fn rows(&self, _: &str, _: [usize; 2], _: &[u32], _: Range<usize>) -> anyhow::Result<Tensor> {
        unreachable!("a tower reads whole tensors")
    }

    fn part(&self, _: &str, _: &[usize], _: usize, _: usize) -> anyhow::Result<Tensor> {
        unreachable!("a tower reads whole tensors")
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

fn numbers(value: &Value) -> Vec<usize> {
    let list = value.as_array().unwrap().iter();
    list.map(|number| number.as_u64().unwrap() as usize)
        .collect()
}

fn pair(value: &Value) -> Option<[usize; 2]> {
    value.is_array().then(|| numbers(value).try_into().unwrap())
}

/// tests/golden/generate/vision.py, transformers 5.23.0 with eager attention in float32, torch 2.13.0 on a CPU.
#[test]
fn features_match_transformers() {
    let bytes = golden("vision.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let cases = header.metadata().clone().unwrap();
    let mut wrong = Vec::new();
    for (name, about) in &cases {
        let about: Value = serde_json::from_str(about).unwrap();
        let (config, image) = (&about["config"], &about["image"]);
        let tensors = about["tensors"].as_object().unwrap().iter();
        let weights = Named(
            tensors
                .map(|(name, shape)| (name.clone(), numbers(shape)))
                .collect(),
        );
        let vision = Vision::new(config, 48, 1e-5).unwrap().unwrap();
        assert_eq!(vision.image_token, 64, "{name}");
        let shape = numbers(&image["pixels"]);
        let side = *shape.last().unwrap() as f32;
        let pixels = formula::values(&format!("{name} pixels"), &shape);
        let pixels: Vec<f32> = pixels
            .iter()
            .map(|value| value * side.sqrt() / 2.0)
            .collect();
        let image = Image {
            pixels: crate::tensor::from_f32(&pixels, &shape).unwrap(),
            grid: pair(&image["grid"]).unwrap_or([1, 1]),
            size: pair(&image["size"]).unwrap_or([0, 0]),
        };
        let loaded = vision.load(&weights, F32).unwrap();
        let features = loaded.features(&image).unwrap();
        assert_eq!(features.deep.len(), vision.n_deep(), "{name}");
        let all: Vec<Tensor> = std::iter::once(features.embeddings)
            .chain(features.deep)
            .collect();
        let error = relative_error(&Tensor::stack(&all, 0), &read(&file, name));
        if error > 1e-5 {
            wrong.push(format!("{name}: {error:e}"));
        }
    }
    assert!(cases.len() > 15 && wrong.is_empty(), "{wrong:?}");
}

#[test]
fn what_no_row_describes_is_refused_by_name() {
    let config = serde_json::json!({
        "model_type": "llava", "image_token_index": 5, "vision_config": {"model_type": "timm_wrapper"},
    });
    let error = Vision::new(&config, 48, 1e-5).unwrap_err().to_string();
    assert!(error.starts_with(
        "config.json: vision_config.model_type is \"timm_wrapper\", which is not implemented; supported: clip_vision_model,"
    ), "{error}");
    let blind = serde_json::json!({"model_type": "llama"});
    assert!(Vision::new(&blind, 48, 1e-5).unwrap().is_none());
}
