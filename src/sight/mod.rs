//! Images of windows: what a processor writes for them, and what the model's tower makes of them.

mod shown;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};

pub use shown::Shown;

use crate::calibration::{self, Document, ImagePrompt, ImagePrompts, ImageSource, Images, Windows};
use crate::fault::InputError;
use crate::images::{self, Processor};
use crate::model::vision::{Features, Image, LoadedVision, Vision};
use crate::model::{Compute, Model, Weights};
use crate::tensor;
use crate::weights::ModelDir;

/// What calibrates the model, and what prepares images where there are any.
pub struct Data {
    pub documents: Vec<Document>,
    pub processor: Option<Processor>,
    /// What the report should say of them.
    pub notes: Vec<String>,
}

impl Data {
    /// Text alone.
    pub fn of_text(documents: Vec<Document>) -> Self {
        Self {
            documents,
            processor: None,
            notes: Vec::new(),
        }
    }
}

/// Reads the calibration data at `path`, or the built-in one; images only for a model that sees.
///
/// # Errors
/// Data with images of the caller's for a model that lacks a processor's settings.
pub fn load(path: Option<&Path>, source: &ModelDir) -> Result<Data> {
    let only_text = |notes| -> Result<Data> {
        Ok(Data {
            notes,
            ..Data::of_text(calibration::load(path, Images::Dropped)?)
        })
    };
    if let Some(reason) = &source.model.blind {
        let note = format!("text alone is used, as the model's eyes are not known: {reason}");
        return only_text(vec![note]);
    }
    if source.model.vision.is_none() {
        return only_text(Vec::new());
    }
    let documents = calibration::load(path, Images::Kept)?;
    if documents.iter().all(|document| document.n_images() == 0) {
        return only_text(vec![
            "the model sees images, but there is text alone to calibrate with".to_owned(),
        ]);
    }
    let dir = source.checkpoint.dir();
    match Processor::open(dir, &source.config) {
        Ok(processor) => Ok(Data {
            documents,
            processor: Some(processor),
            notes: Vec::new(),
        }),
        // The built-in images are an offer.
        Err(error) if path.is_none() => {
            let note = format!("text alone is used, as images cannot be prepared: {error}");
            only_text(vec![note])
        }
        Err(error) => Err(InputError::new(
            dir,
            error,
            "give the processor's files of the original model, or calibration data without images",
        )
        .into()),
    }
}

impl ImagePrompts for Processor {
    fn placeholder(&self) -> &str {
        Self::placeholder(self)
    }

    fn image_token(&self) -> &str {
        Self::image_token(self)
    }

    fn prompt(
        &self,
        width: u32,
        height: u32,
    ) -> Result<ImagePrompt, Box<dyn std::error::Error + Send + Sync>> {
        let images::Written { text, n_tokens } = Self::prompt(self, width, height)?;
        Ok(ImagePrompt { text, n_tokens })
    }
}

/// The windows' tokens with another in the place of those that stand for images: what is embedded there is replaced, and a
/// placeholder need not be in the vocabulary. Where layers attend to images it is a token as any other.
pub fn without_placeholders(model: &Model, windows: &Windows) -> Vec<Vec<u32>> {
    let mut ids = windows.ids.clone();
    let Some(vision) = &model.vision else {
        return ids;
    };
    if vision.n_looked_at().is_some() {
        return ids;
    }
    let stand_in = (model.config.layer_input).map_or(0, |input| input.stand_in);
    for (ids, images) in ids.iter_mut().zip(&windows.images) {
        for image in images {
            for place in places(ids, vision, image.start, image.n_tokens) {
                ids[place] = stand_in;
            }
        }
    }
    ids
}

/// Says so where conversations were too long for a window.
pub fn left_out(windows: &Windows) -> Option<String> {
    let n = windows.n_left_out;
    (n > 0).then(|| {
        format!("{n} built-in conversations with images are longer than a window and were left out; a longer --seq-len takes them in")
    })
}

/// How many tokens of all windows stand for images.
pub fn n_image_tokens(windows: &Windows) -> usize {
    let images = windows.images.iter().flatten();
    images.map(|image| image.n_tokens).sum()
}

/// How many images there are in all windows.
pub fn n_distinct_images(windows: &Windows) -> usize {
    let images = windows.images.iter().flatten();
    let images: HashSet<&ImageSource> = images.map(|image| &image.source).collect();
    images.len()
}

/// The first `count` placeholders of `ids` from `start` on.
fn places(ids: &[u32], vision: &Vision, start: usize, count: usize) -> Vec<usize> {
    let places = (start..ids.len()).filter(|&place| ids[place] == vision.image_token);
    places.take(count).collect()
}

/// Runs the model's tower on each image of the windows, once. `shown` gets what it becomes for each window that it is in, with
/// the places of its tokens there. The tower, read from `weights`, is in memory only here.
///
/// # Errors
/// Images that cannot be decoded, by name; a tower that does not give as many features as the prompt has placeholders.
pub fn show(
    source: &ModelDir,
    weights: &dyn Weights,
    compute: Compute,
    processor: &Processor,
    windows: &Windows,
    mut shown: impl FnMut(usize, &[usize], &Features) -> Result<()>,
) -> Result<()> {
    let Some(vision) = &source.model.vision else {
        return Ok(());
    };
    let loaded = vision.load(weights, compute)?;
    // An image may be in several windows.
    let mut order: Vec<&ImageSource> = Vec::new();
    let mut occurrences: HashMap<&ImageSource, Vec<(usize, Vec<usize>)>> = HashMap::new();
    for (window, (ids, images)) in windows.ids.iter().zip(&windows.images).enumerate() {
        for seen in images {
            let own = occurrences.entry(&seen.source).or_insert_with(|| {
                order.push(&seen.source);
                Vec::new()
            });
            own.push((window, places(ids, vision, seen.start, seen.n_tokens)));
        }
    }
    for image in order {
        let features = look(source, &loaded, processor, image);
        let features = features.with_context(|| image.to_string())?;
        for (window, places) in &occurrences[image] {
            shown(*window, places, &features)?;
        }
    }
    Ok(())
}

/// What the tower makes of one image.
fn look(
    source: &ModelDir,
    loaded: &LoadedVision<'_>,
    processor: &Processor,
    image: &ImageSource,
) -> Result<Features> {
    let failed = |problem: &dyn std::fmt::Display| {
        let name = image.to_string();
        InputError::new(Path::new(&name), problem.to_string(), "give another image")
    };
    let bytes = image.read().map_err(|error| failed(&error))?;
    let decoded = images::decode(&bytes).map_err(|error| failed(&error))?;
    let pixels = processor.pixels(&decoded).map_err(|error| failed(&error))?;
    let mut features = loaded.features(&Image {
        pixels: tensor::from_f32(&pixels.values, &pixels.shape)?,
        grid: pixels.grid,
        size: pixels.size,
    })?;
    if features.n_looked_at.is_some() {
        // All windows that see it share it.
        features.embeddings = features.embeddings.f_to_device(tch::Device::Cpu)?;
        return Ok(features);
    }
    let n_features = features.embeddings.size()[0] as usize;
    let (width, height) = decoded.dimensions();
    let n_placeholders = Processor::prompt(processor, width, height)?.n_tokens;
    anyhow::ensure!(
        n_features == n_placeholders,
        InputError::new(
            source.checkpoint.dir(),
            format!(
                "{image}: the tower makes {n_features} vectors of it, but the processor's files ask for {n_placeholders} \
                 tokens"
            ),
            "use the processor_config.json and preprocessor_config.json that belong to the model",
        )
    );
    Ok(features)
}
