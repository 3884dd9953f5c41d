//! Towers and projectors against transformers.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::model::formula::{self, FormulaWeights};
use crate::model::tests::{F32, golden, read, relative_error};
use crate::model::{EmbeddedImages, Gallery, Hung, Layer, Model, Sighting, Slot, State, Tokens};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use tch::Kind;

fn numbers(value: &Value) -> Vec<usize> {
    let list = value.as_array().unwrap().iter();
    list.map(|number| number.as_u64().unwrap() as usize)
        .collect()
}

fn pair(value: &Value) -> Option<[usize; 2]> {
    value.is_array().then(|| numbers(value).try_into().unwrap())
}

/// A case of tests/golden/vision.safetensors.
struct Case {
    name: String,
    config: Value,
    image: Value,
    shapes: BTreeMap<String, Vec<usize>>,
    weights: FormulaWeights,
}

impl Case {
    fn picture(&self, number: usize) -> Image {
        let shape = numbers(&self.image["pixels"]);
        let factor = (*shape.last().unwrap() as f32).sqrt();
        let pixels = formula::values(&format!("{} pixels {number}", self.name), &shape);
        let pixels: Vec<f32> = pixels.iter().map(|value| value * factor / 2.0).collect();
        Image {
            pixels: crate::tensor::from_f32(&pixels, &shape).unwrap(),
            grid: pair(&self.image["grid"]).unwrap_or([1, 1]),
            size: pair(&self.image["size"]).unwrap_or([0, 0]),
        }
    }
}

/// What transformers computed, and with what.
struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        Self(golden("vision.safetensors"))
    }

    fn tensor(&self, name: &str) -> Tensor {
        read(&SafeTensors::deserialize(&self.0).unwrap(), name)
    }

    fn cases(&self) -> Vec<Case> {
        let (_, header) = SafeTensors::read_metadata(&self.0).unwrap();
        let cases = header.metadata().clone().unwrap().into_iter();
        let cases = cases.map(|(name, about)| {
            let mut about: Value = serde_json::from_str(&about).unwrap();
            let tensors = about["tensors"].as_object().unwrap().iter();
            let tensors = tensors.map(|(name, shape)| (name.clone(), numbers(shape)));
            let shapes: BTreeMap<_, _> = tensors.collect();
            Case {
                name,
                weights: FormulaWeights::of(shapes.clone(), Kind::Float),
                shapes,
                config: about["config"].take(),
                image: about["image"].take(),
            }
        });
        cases.collect()
    }
}

/// tests/golden/generate/vision.py, transformers 5.23.0 with eager attention in float32, torch 2.13.0 on a CPU.
#[test]
fn features_match_transformers() {
    let golden = Golden::open();
    let cases = golden.cases();
    let mut wrong = Vec::new();
    for case in &cases {
        let name = &case.name;
        let vision = Vision::new(&case.config, 48, 1e-5).unwrap().unwrap();
        assert_eq!(vision.image_token, 64, "{name}");
        let loaded = vision.load(&case.weights, F32).unwrap();
        let features = loaded.features(&case.picture(0)).unwrap();
        assert_eq!(features.deep.len(), vision.n_deep(), "{name}");
        let all: Vec<Tensor> = std::iter::once(features.embeddings)
            .chain(features.deep)
            .collect();
        let error = relative_error(&Tensor::stack(&all, 0), &golden.tensor(name));
        if error > 1e-5 {
            wrong.push(format!("{name}: {error:e}"));
        }
    }
    assert!(cases.len() > 15 && wrong.is_empty(), "{wrong:?}");
}

/// Of a prompt with an image and one with two, in one batch.
#[test]
fn logits_match_transformers() {
    let golden = Golden::open();
    let mut wrong = Vec::new();
    for case in golden.cases() {
        match logits(&case) {
            Ok(found) => {
                let found = found.slice(1, 2, None, 3);
                let expected = golden.tensor(&format!("{} logits", case.name));
                let error = relative_error(&found, &expected);
                if error > 1e-5 {
                    wrong.push(format!("{}: {error:e}", case.name));
                }
            }
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn logits(case: &Case) -> Result<Tensor, Error> {
    let Case { name, weights, .. } = case;
    let mut model = Model::from_config(&case.config)?;
    model.fit(&|name| case.shapes.get(name).cloned());
    let vision = model.vision.as_ref().unwrap();
    let loaded = vision.load(weights, F32)?;
    let pictures = [0, 1, 2].map(|number| loaded.features(&case.picture(number)).unwrap());
    if vision.n_looked_at().is_some() {
        return logits_of_looking(case, &model, &pictures);
    }
    let n_tokens = pictures[0].embeddings.size()[0] as usize;
    let seq_len = 2 * n_tokens + 10;
    let sighting = |start| Sighting {
        start,
        n_tokens,
        grid: pictures[0].grid,
    };
    // With a word between, but where images come one after the other.
    let between = usize::from(case.config["model_type"] != "paligemma");
    let second = sighting(2 + n_tokens + between);
    let seen = [vec![sighting(5)], vec![sighting(2), second]];
    let places: Vec<(i64, Sighting, &Features)> = (seen.iter().enumerate())
        .flat_map(|(row, sightings)| {
            sightings
                .iter()
                .map(move |&sighting| (row as i64, sighting))
        })
        .zip(&pictures)
        .map(|((row, sighting), features)| (row, sighting, features))
        .collect();
    let mut ids = formula::token_ids(&format!("{name} words"), seq_len, 60).repeat(2);
    let (mut taken, mut rows) = (Vec::new(), Vec::new());
    for (row, sighting, features) in &places {
        let start = *row as usize * seq_len + sighting.start;
        ids[start..start + n_tokens].fill(0);
        taken.extend((start..start + n_tokens).map(|place| place as i64));
        rows.push(&features.embeddings);
    }
    let images = EmbeddedImages {
        places: Tensor::from_slice(&taken),
        rows: Tensor::cat(&rows, 0),
    };
    let embedded = model.embed(weights, F32, &ids, seq_len, 0)?;
    let mut state = State::new(embedded.view([2, seq_len as i64, -1]));
    let words_and_images = Tokens {
        ids: &ids,
        start: 0,
        images: Some(&images),
    };
    let tokens = |hidden: &Tensor, row, sighting: &Sighting| {
        (hidden.get(row)).narrow(0, sighting.start as i64, n_tokens as i64)
    };
    for (row, sighting, features) in &places {
        tokens(&state.hidden, *row, sighting).copy_(&features.embeddings);
    }
    let standing = model.places_with_images(F32, seq_len, &[&seen[0], &seen[1]])?;
    for index in 0..model.config.n_layers {
        let layer = Layer::load(&model, weights, F32, index)?;
        model.enter_layer(weights, F32, index, words_and_images, &mut state)?;
        state = layer.forward(state, &standing, None)?;
        for (row, sighting, features) in &places {
            if let Some(added) = features.deep.get(index) {
                let _ = tokens(&state.hidden, *row, sighting).f_add_(added)?;
            }
        }
    }
    model.head(weights, F32)?.logits(&state.hidden)
}

/// The same, where layers attend to the images that a token stands for.
fn logits_of_looking(
    case: &Case,
    model: &Model,
    pictures: &[Features; 3],
) -> Result<Tensor, Error> {
    let Case { name, weights, .. } = case;
    let starts = [
        vec![5],
        if name == "mllama_side_by_side" {
            vec![2, 3]
        } else {
            vec![2, 4]
        },
    ];
    let mut ids = formula::token_ids(&format!("{name} words"), 12, 60).repeat(2);
    let mut pictures = pictures.iter();
    let windows: Vec<Vec<Hung>> = (starts.iter().zip(ids.chunks_mut(12)))
        .map(|(starts, ids)| {
            let hung = starts.iter().zip(&mut pictures).map(|(&start, picture)| {
                ids[start] = 64;
                Hung {
                    start,
                    rows: picture.embeddings.shallow_clone(),
                    n_own: picture.n_looked_at.unwrap(),
                }
            });
            hung.collect()
        })
        .collect();
    let gallery = Gallery::new(F32, 12, &[&windows[0], &windows[1]])?.unwrap();
    let sees = gallery.sees().shallow_clone();
    let places = model.places(F32, 12)?.before(Some(gallery));
    let embedded = model.embed(weights, F32, &ids, 12, 0)?;
    let mut state = State::new(embedded.view([2, 12, -1]));
    for index in 0..model.config.n_layers {
        let layer = Layer::load(model, weights, F32, index)?;
        if layer.block.looks() {
            state.set_slot(Slot::Sees, Some(sees.shallow_clone()));
        }
        state = layer.forward(state, &places, None)?;
    }
    model.head(weights, F32)?.logits(&state.hidden)
}

#[test]
fn tiles_that_the_tower_has_no_embedding_of_are_refused() {
    let cases = Golden::open().cases();
    let case = cases.iter().find(|case| case.name == "mllama").unwrap();
    let vision = Vision::new(&case.config, 48, 1e-5).unwrap().unwrap();
    let loaded = vision.load(&case.weights, F32).unwrap();
    for grid in [[1, 2], [3, 2]] {
        let image = Image {
            grid,
            ..case.picture(0)
        };
        let error = loaded.features(&image).unwrap_err().to_string();
        let words = format!(
            "[3, 3, 28, 28] are no {} rows of {} tiles of 28 pixels",
            grid[0], grid[1]
        );
        assert!(error.contains(&words), "{error}");
    }
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
