//! Opens the model of a run, with those linears left in float that the caller wants left.

use anyhow::Result;

use super::tower::Tower;
use crate::cli::settings::{self, Settings};
use crate::fault::InputError;
use crate::model::LayerPlan;
use crate::weights::ModelDir;

/// Opens the model that `settings` name, to be quantized as they say.
///
/// # Errors
/// Those of [`ModelDir::open`]; an expression that fits no linear; nothing left to quantize.
pub fn open(settings: &Settings) -> Result<ModelDir> {
    let mut source = ModelDir::open(&settings.model)?;
    let selection = &settings.selection;
    let in_tower = match &source.model.vision {
        Some(vision) if selection.vision => vision.linears(&source),
        _ => Vec::new(),
    };
    let in_layers = source.model.layers.iter().flat_map(LayerPlan::linears);
    let in_layers = in_layers.map(|linear| &linear.name[..]);
    let in_tower = in_tower.iter().map(|linear| &linear.0[..]);
    let names: Vec<&str> = in_tower.chain(in_layers).collect();
    let example = || {
        let last = names.last();
        last.map_or("none: the model has no linears", |name| name)
            .to_owned()
    };
    for (option, pattern) in selection.patterns() {
        if !names.iter().any(|name| pattern.is_match(name)) {
            return Err(settings::Error::NoSuchLinear {
                option,
                pattern: pattern.to_string(),
                example: example(),
            }
            .into());
        }
    }
    if names.iter().all(|name| selection.leaves_in_float(name)) {
        return Err(settings::Error::NothingLeft { example: example() }.into());
    }
    source
        .model
        .leave_in_float(&|name| selection.leaves_in_float(name));
    Ok(source)
}

/// Leaves the linears in float that read what images make, because there is none to calibrate them with, and says so.
///
/// # Errors
/// Nothing left to quantize.
pub fn leave_unseen_in_float(source: &mut ModelDir, tower: &Tower) -> Result<String> {
    let model = &mut source.model;
    let looking = model.layers.iter().filter(|layer| layer.config.looks);
    let n_linears: usize = looking.map(|layer| layer.quantized().count()).sum();
    model.leave_unseen_in_float();
    let is_left = |layer: &LayerPlan| layer.quantized().next().is_some();
    if tower.linears.is_empty() && !model.layers.iter().any(is_left) {
        let dir = source.checkpoint.dir();
        let problem = "only layers that attend to images were to be quantized, but there is no image to calibrate them with";
        let remedy = "give --calib-data with images and the model's processor_config.json or preprocessor_config.json";
        return Err(InputError::new(dir, problem, remedy).into());
    }
    Ok(format!(
        "{n_linears} linears stay in float16: their layers attend to images, and there is none to calibrate them with; give \
         --calib-data with images"
    ))
}
