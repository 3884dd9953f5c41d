//! What a language model sees: a tower that turns patches of an image into features, and a projector that turns these into
//! embeddings of the language model. Both stay in float, and what differs between families is data: a row of
//! `towers::TOWERS` and one of `eyes::EYES`.

mod config;
mod crops;
mod eyes;
mod layer;
mod place;
mod projector;
mod rows;
#[cfg(test)]
mod tests;
mod tiled;
mod tiles;
mod tower;
mod towers;

use super::keys::{Keys, filled};
use super::{Compute, Error, Weights};
use config::TowerConfig;
use crops::Crops;
use place::Grid;
use projector::{Projector, Surroundings};
use rows::{Eyes, Prefixes, Selection, Tiles};
pub use rows::{Positions, Sight};
use serde_json::Value;
use tch::Tensor;
use tiled::{TiledConfig, TiledTower};
use tower::LoadedTower;

/// An image as its tower reads it.
#[derive(Debug)]
pub struct Image {
    /// `[patches, channels * frames * side^2]`, or `[tiles, channels, height, width]`.
    pub pixels: Tensor,
    /// Rows and columns of patches, or of tiles where there is more than one.
    pub grid: [usize; 2],
    /// Height and width of the image itself; where it was brought to whole tiles, of what is no padding in these.
    pub size: [usize; 2],
}

/// What the language model gets of an image.
#[derive(Debug)]
pub struct Features {
    /// `[tokens, hidden]`, in the place of the placeholders' embeddings.
    pub embeddings: Tensor,
    /// The same shape each, added to the placeholders behind the language model's first layers.
    pub deep: Vec<Tensor>,
    /// Rows and columns of the tokens, where they are counted so.
    pub grid: [usize; 2],
    /// Where layers of their own attend to the embeddings, which take no token's place then: how many of them are the image; the
    /// others padded it.
    pub n_looked_at: Option<usize>,
}

/// How a model sees, without any weights.
#[derive(Debug, Clone)]
pub struct Vision {
    eyes: &'static Eyes,
    tower: TowerConfig,
    tiled: Option<TiledConfig>,
    /// The configuration with transformers' defaults.
    json: Value,
    text_width: usize,
    text_eps: f64,
    /// The counts of layers whose outputs are the features, and whether the class token is left out.
    outputs: Vec<usize>,
    without_class: bool,
    last_norm: bool,
    sight: Sight,
    /// The token that stands for a feature.
    pub image_token: u32,
}

/// A tower and a projector with their weights.
#[derive(Debug)]
pub struct LoadedVision<'a> {
    vision: &'a Vision,
    compute: Compute,
    tower: AnyTower,
    projector: Projector,
    deepstack: Vec<Projector>,
    /// `[hidden]`
    newline: Option<Tensor>,
    crops: Option<Crops>,
}

#[derive(Debug)]
enum AnyTower {
    /// It reads each tile by itself.
    Each(LoadedTower),
    /// It reads all tiles of an image together.
    Together(TiledTower),
}

impl Vision {
    /// How the model of the configuration `json` sees, if it does. Its language model is `text_width` wide, and the epsilon of
    /// its norms is `text_eps`.
    ///
    /// # Errors
    /// A tower that no row describes, or numbers that do not fit.
    pub fn new(json: &Value, text_width: usize, text_eps: f64) -> Result<Option<Self>, Error> {
        let model_type = json["model_type"].as_str().unwrap_or_default();
        let has_tower = json["vision_config"].is_object();
        let find = |eyes: &&&Eyes| eyes.model_types.contains(&model_type);
        if !has_tower {
            return Ok(None);
        }
        let Some(&eyes) = eyes::EYES.iter().find(find) else {
            let known = eyes::EYES.iter().flat_map(|eyes| eyes.model_types);
            let known: Vec<&str> = known.copied().collect();
            let keys = Keys { json, path: "" };
            return Err(keys.unsupported("model_type", &known.join(", ")));
        };
        let json = filled(json, eyes.defaults);
        let keys = Keys {
            json: &json,
            path: "",
        };
        let find = |name| (towers::TOWERS.iter()).find(|row| row.model_types.contains(&name));
        let row = match json["vision_config"]["model_type"].as_str() {
            Some(named) => find(named),
            None => find(model_type).or_else(|| find(eyes.tower)),
        };
        let Some(row) = row else {
            let known: Vec<&str> = towers::TOWERS
                .iter()
                .map(|row| row.model_types[0])
                .collect();
            let vision = Keys {
                json: &json["vision_config"],
                path: "vision_config",
            };
            return Err(vision.unsupported("model_type", &known.join(", ")));
        };
        let tower = TowerConfig::new(row, &filled(&json["vision_config"], row.defaults))?;
        let tiled = row.global.map(|global| TiledConfig::new(&tower, global));
        let (outputs, last_norm) = match eyes.selection {
            Selection::Last => (vec![tower.n_layers], true),
            Selection::Tiled => (Vec::new(), false),
            Selection::TowerLayer | Selection::Layer | Selection::LayerOrLast => {
                let (keys, key) = if eyes.selection == Selection::TowerLayer {
                    (&tower.keys(), "feature_layer")
                } else {
                    (&keys, "vision_feature_layer")
                };
                let value = &keys.json[key];
                let listed = value
                    .as_array()
                    .map_or_else(|| vec![value], |list| list.iter().collect());
                let n_outputs = tower.n_layers as i64 + 1;
                let outputs = listed.into_iter().map(|value| {
                    let index = value.as_i64()?;
                    let index = if index < 0 { index + n_outputs } else { index };
                    (0..n_outputs).contains(&index).then_some(index as usize)
                });
                let outputs: Option<Vec<usize>> = outputs.collect();
                let outputs = outputs
                    .ok_or_else(|| keys.invalid(key, format!("layers from -{n_outputs} on")))?;
                let last = eyes.selection == Selection::LayerOrLast && *value == -1;
                (outputs, last)
            }
        };
        let mut found = None;
        for keys in [&keys, &tower.keys()] {
            for key in eyes.image_token {
                found = found.or(keys.usize(key)?);
            }
        }
        let image_token = found.ok_or_else(|| keys.missing(eyes.image_token[0]))? as u32;
        let strategy = keys.str("vision_feature_select_strategy")?;
        let sees_ahead = json["text_config"]["use_bidirectional_attention"] == "vision";
        let sight = match eyes.sight {
            Sight::OwnImageInWindows if !sees_ahead => Sight::Causal,
            sight => sight,
        };
        Ok(Some(Self {
            eyes,
            sight,
            text_width,
            text_eps,
            without_class: eyes.selection != Selection::Last && strategy == Some("default"),
            tiled: tiled.transpose()?,
            outputs,
            last_norm,
            image_token,
            tower,
            json,
        }))
    }

    /// How the tokens of an image are counted.
    pub fn positions(&self) -> Positions {
        self.eyes.positions
    }

    /// Which later tokens its tokens see.
    pub fn sight(&self) -> Sight {
        self.sight
    }

    /// How many embeddings of an image layers attend to, where they do instead of reading them as tokens.
    pub fn n_looked_at(&self) -> Option<usize> {
        let tiled = self.tiled.as_ref().filter(|_| self.eyes.looked_at)?;
        Some(tiled.n_tiles * self.tower.n_positions)
    }

    /// How many layers of the language model get features of their own.
    pub fn n_deep(&self) -> usize {
        self.eyes
            .deepstack
            .map_or(0, |_| self.tower.deepstack.len())
    }

    /// The linears of the tower's layers, by their full names in the checkpoint, with their shapes `[out, in]`.
    pub fn linears(&self, weights: &dyn Weights) -> Vec<(String, [usize; 2])> {
        let prefix = self.prefixes(weights).tower;
        let linears = self.tower.layer_linears();
        let parts =
            std::iter::once(&self.tower).chain(self.tiled.as_ref().map(TiledConfig::global));
        let layers = parts.flat_map(|tower| {
            let layers = tower.row.layers;
            (0..tower.n_layers).map(move |layer| format!("{prefix}{layers}.{layer}."))
        });
        let named = |layer: String| {
            let linears = linears.iter();
            linears.map(move |(name, shape, _)| (format!("{layer}{name}"), *shape))
        };
        layers.flat_map(named).collect()
    }

    /// Reads the tower and the projector.
    ///
    /// # Errors
    /// Tensors that are missing or have other shapes.
    pub fn load(&self, weights: &dyn Weights, compute: Compute) -> Result<LoadedVision<'_>, Error> {
        let Prefixes {
            tower: tower_prefix,
            projector,
            newline,
        } = self.prefixes(weights);
        let surroundings = Surroundings {
            tower: &self.tower,
            keys: Keys {
                json: &self.json,
                path: "",
            },
            text_width: self.text_width,
            text_eps: self.text_eps,
        };
        let width = self.tower.width;
        let deepstack = self.eyes.deepstack.map_or(Vec::new(), |(list, steps)| {
            let mergers = (0..self.tower.deepstack.len()).map(|index| {
                let prefix = format!("{tower_prefix}{list}.{index}.");
                Projector::load(steps, &surroundings, weights, compute, &prefix, width)
            });
            mergers.collect()
        });
        let is_unpadded = matches!(self.eyes.tiles, Tiles::Unpadded | Tiles::UnpaddedAtMost);
        let newline =
            is_unpadded.then(|| compute.place(&weights.tensor(newline, &[self.text_width])?));
        let crops = (self.eyes.tiles == Tiles::Crops)
            .then(|| Crops::load(&self.tower, weights, compute, projector));
        let tower = match &self.tiled {
            None => AnyTower::Each(LoadedTower::load(
                &self.tower,
                weights,
                compute,
                tower_prefix,
            )?),
            Some(tiled) => AnyTower::Together(TiledTower::load(
                &self.tower,
                tiled,
                weights,
                compute,
                tower_prefix,
            )?),
        };
        let n_outputs = (self.tiled.as_ref()).map_or(self.outputs.len(), TiledConfig::n_outputs);
        Ok(LoadedVision {
            vision: self,
            compute,
            tower,
            projector: Projector::load(
                self.eyes.projector,
                &surroundings,
                weights,
                compute,
                projector,
                width * n_outputs,
            )?,
            deepstack: deepstack.into_iter().collect::<Result<_, _>>()?,
            newline: newline.transpose()?,
            crops: crops.transpose()?,
        })
    }

    /// The way that the checkpoint is stored: the first where there are patches, else the first.
    fn prefixes(&self, weights: &dyn Weights) -> Prefixes {
        let all = self.eyes.prefixes;
        let patches = self.tower.row.patches;
        let stored =
            |prefixes: &&Prefixes| weights.contains(&format!("{}{patches}.weight", prefixes.tower));
        *all.iter().find(stored).unwrap_or(&all[0])
    }
}

impl LoadedVision<'_> {
    /// What the language model gets of `image`.
    ///
    /// # Errors
    /// [`Error::Image`] where the pixels are not what the tower reads.
    pub fn features(&self, image: &Image) -> Result<Features, Error> {
        let vision = self.vision;
        let tower = match &self.tower {
            AnyTower::Each(tower) => tower,
            AnyTower::Together(tower) => {
                let (features, n_own) = tower.features(image, self.compute)?;
                let grid = Grid::new([1, features.size()[1] as usize], None);
                let embeddings = self.projector.forward(features, grid)?;
                return Ok(Features {
                    embeddings: embeddings.f_flatten(0, 1)?,
                    deep: Vec::new(),
                    grid: image.grid,
                    n_looked_at: vision.eyes.looked_at.then_some(n_own),
                });
            }
        };
        let deep = (vision.tower.deepstack.iter()).take(self.deepstack.len());
        let wanted = vision.outputs.iter().copied();
        let wanted: Vec<usize> = wanted.chain(deep.map(|layer| layer + 1)).collect();
        let (mut outputs, grid) = tower.outputs(image, &wanted, self.compute)?;
        let deep = outputs.split_off(vision.outputs.len());
        let mut selected = Vec::new();
        for mut output in outputs {
            if vision.last_norm {
                output = tower.normed(output)?;
            }
            if vision.without_class {
                output = output.f_narrow(1, 1, output.size()[1] - 1)?;
            }
            selected.push(output);
        }
        let mut selected = Tensor::f_cat(&selected, 2)?;
        if let Some(crops) = &self.crops {
            selected = crops.assembled(&selected, &grid, image, vision.tower.patch_size)?;
        }
        let embeddings = self.projector.forward(selected, grid)?;
        let flat = |x: Tensor| x.f_flatten(0, 1);
        let side = grid.squares.unwrap_or(1);
        Ok(Features {
            embeddings: match &self.newline {
                None => flat(embeddings)?,
                Some(newline) => {
                    let most = tiles::most_patches(vision.eyes.tiles, &vision.json)?;
                    tiles::unpadded(&embeddings, newline, image, most)?
                }
            },
            deep: (deep.into_iter().zip(&self.deepstack))
                .map(|(output, merger)| Ok(flat(merger.forward(output, grid)?)?))
                .collect::<Result<_, Error>>()?,
            grid: [grid.rows / side, grid.columns / side],
            n_looked_at: None,
        })
    }
}
