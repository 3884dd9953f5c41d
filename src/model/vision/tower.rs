//! A tower's sizes, its weights, and what it makes of an image.

use super::Image;
use super::layer::TowerLayer;
use super::place::{Grid, PatchPlaces};
use super::rows::{Eps, MlpWidth, Tower, TowerBias};
use crate::model::config::activation;
use crate::model::keys::Keys;
use crate::model::{Activation, Compute, Error, Norm, NormKind, Weights};
use serde_json::Value;
use tch::Tensor;

/// A tower's numbers.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct TowerConfig {
    pub row: &'static Tower,
    /// `vision_config` with the row's defaults.
    pub json: Value,
    pub width: usize,
    pub mlp_width: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Patches of the side of a square that becomes one feature, where patches are stored square by square.
    pub squares: Option<usize>,
    /// Frames of a patch, for towers that see films; an image is stored as so many equal ones.
    pub frames: usize,
    /// Pixels of an image's side, where all have one size.
    pub image_size: Option<usize>,
    pub activation: Activation,
    pub eps: f64,
    pub rope_theta: f64,
    pub bias: bool,
    pub output_bias: bool,
    /// Whether whole queries and keys have norms.
    pub query_key_norms: bool,
    /// The norms of layers; those around them are as the row says.
    pub norm_kind: NormKind,
    pub has_last_norm: bool,
    /// Patches of a window's side, in squares, and the layers that attend to everything all the same.
    pub windows: Option<(usize, Vec<usize>)>,
    /// Rows of the table of positions, the class token's among them.
    pub n_positions: usize,
    /// The layers whose outputs are used in the language model's first layers.
    pub deepstack: Vec<usize>,
}

impl TowerConfig {
    /// From `vision_config`, with the row's defaults filled in.
    pub fn new(row: &'static Tower, json: &Value) -> Result<Self, Error> {
        let keys = Keys {
            json,
            path: "vision_config",
        };
        let either = |first: &'static str, second: &'static str| {
            let key = if keys.get(first).is_some() {
                first
            } else {
                second
            };
            keys.size(key)
        };
        let width = keys.size(row.width)?;
        let n_heads = either("num_heads", "num_attention_heads")?;
        if !width.is_multiple_of(n_heads) || row.rotary.is_some() && width / n_heads % 4 != 0 {
            return Err(keys.invalid(
                row.width,
                format!(
                    "a multiple of the {n_heads} heads, and where positions turn, four times that"
                ),
            ));
        }
        let patch_size = keys.size("patch_size")?;
        let image_size = keys.length("image_size")?;
        let flag = |bias| match bias {
            TowerBias::Always => Ok(true),
            TowerBias::Never => Ok(false),
            TowerBias::If(key) => Ok::<_, Error>(keys.bool(key)?.unwrap_or(false)),
        };
        let n_positions = match keys.length("num_position_embeddings")? {
            Some(count) => count,
            None => image_size.map_or(0, |size| (size / patch_size).pow(2)),
        };
        let windows = if row.windows {
            let side = keys.size("window_size")? / keys.size("spatial_merge_size")? / patch_size;
            if side == 0 {
                return Err(keys.invalid("window_size", "at least a square of patches"));
            }
            Some((side, indices(&keys, "fullatt_block_indexes")?))
        } else {
            None
        };
        let rotary = keys.get("rope_parameters").unwrap_or(&Value::Null);
        let rope_theta = Keys {
            json: rotary,
            path: "vision_config.rope_parameters",
        }
        .positive("rope_theta")?
        .or(keys.positive("rope_theta")?);
        Ok(Self {
            row,
            json: json.clone(),
            width,
            mlp_width: match row.mlp_width {
                MlpWidth::Key(key) => keys.size(key)?,
                MlpWidth::Ratio(key) => width * keys.size(key)?,
            },
            n_layers: either("depth", "num_hidden_layers")?,
            n_heads,
            patch_size,
            squares: keys.length("spatial_merge_size")?,
            frames: keys.length("temporal_patch_size")?.unwrap_or(1),
            image_size,
            activation: activation(&keys, "hidden_act")?,
            eps: match row.norm.eps {
                Eps::Is(eps) => eps,
                Eps::Key(key) => keys.positive(key)?.ok_or_else(|| keys.missing(key))?,
                Eps::Text => unreachable!("a tower knows no text"),
            },
            rope_theta: rope_theta.unwrap_or(10_000.0),
            bias: flag(row.attention.bias)?,
            output_bias: flag(row.attention.output_bias)?,
            query_key_norms: row.attention.norms.is_some()
                && keys.bool(row.attention.norms_if)?.unwrap_or(false),
            norm_kind: match keys.str("norm_type")? {
                Some("rms_norm") => NormKind::Rms,
                Some("layer_norm") | None => row.norm.kind,
                Some(_) => return Err(keys.unsupported("norm_type", "layer_norm, rms_norm")),
            },
            has_last_norm: row.last_norm.is_some() && keys.bool("use_mean_pooling")? != Some(true),
            windows,
            n_positions: n_positions + usize::from(row.class_token.is_some()),
            deepstack: indices(&keys, "deepstack_visual_indexes")?,
        })
    }

    pub fn keys(&self) -> Keys<'_> {
        Keys {
            json: &self.json,
            path: "vision_config",
        }
    }

    pub fn head_dim(&self) -> usize {
        self.width / self.n_heads
    }
}

fn indices(keys: &Keys<'_>, key: &str) -> Result<Vec<usize>, Error> {
    let Some(value) = keys.get(key) else {
        return Ok(Vec::new());
    };
    let indices = value.as_array().map(|list| {
        let index = |value: &Value| Some(value.as_u64()? as usize);
        list.iter().map(index).collect::<Option<Vec<_>>>()
    });
    indices
        .flatten()
        .ok_or_else(|| keys.invalid(key, "a list of layers' numbers"))
}

/// A tower with its weights.
#[derive(Debug)]
pub struct LoadedTower {
    config: TowerConfig,
    /// `[width, channels * frames * patch_size^2]`, and a bias.
    patches: (Tensor, Option<Tensor>),
    patches_norm: Option<Norm>,
    /// `[1, 1, width]`
    class_token: Option<Tensor>,
    /// `[rows, width]`
    positions: Option<Tensor>,
    first_norm: Option<Norm>,
    layers: Vec<TowerLayer>,
    last_norm: Option<Norm>,
}

impl LoadedTower {
    /// Reads the tensors whose names begin with `prefix`.
    pub fn load(
        config: &TowerConfig,
        weights: &dyn Weights,
        compute: Compute,
        prefix: &str,
    ) -> Result<Self, Error> {
        let row = config.row;
        let width = config.width;
        let tensor = |name: &str, shape: &[usize]| -> Result<Tensor, Error> {
            compute.place(&weights.tensor(&format!("{prefix}{name}"), shape)?)
        };
        let norm = |name: Option<&str>| {
            let load = |name| {
                let name = format!("{prefix}{name}");
                Norm::load(weights, compute, row.norm.kind, config.eps, &name, width)
            };
            name.map(load).transpose()
        };
        let side = config.patch_size;
        let mut shape = vec![width, CHANNELS];
        if config.squares.is_some() {
            shape.push(config.frames);
        }
        shape.extend([side, side]);
        let patches = tensor(&format!("{}.weight", row.patches), &shape)?.f_flatten(1, -1)?;
        let bias = row
            .patches_bias
            .then(|| tensor(&format!("{}.bias", row.patches), &[width]));
        let positions = row.positions.map(|learned| {
            let shape = [config.n_positions, width];
            let wrapped = [1, config.n_positions, width];
            let shape = if learned.wrapped {
                &wrapped[..]
            } else {
                &shape
            };
            Ok::<_, Error>(tensor(learned.name, shape)?.f_view([-1, width as i64])?)
        });
        let class_token = row.class_token.map(|(name, leading)| {
            let shape = [leading, &[width]].concat();
            Ok::<_, Error>(tensor(name, &shape)?.f_view([1, 1, width as i64])?)
        });
        let layers = (0..config.n_layers).map(|index| {
            let prefix = format!("{prefix}{}.{index}.", row.layers);
            TowerLayer::load(config, weights, compute, &prefix)
        });
        Ok(Self {
            patches: (patches, bias.transpose()?),
            patches_norm: norm(row.patches_norm)?,
            class_token: class_token.transpose()?,
            positions: positions.transpose()?,
            first_norm: norm(row.first_norm)?,
            layers: layers.collect::<Result<_, _>>()?,
            last_norm: norm(row.last_norm.filter(|_| config.has_last_norm))?,
            config: config.clone(),
        })
    }

    /// The outputs of the layers, `[tiles, tokens, width]`, of those counts of layers that `wanted` says (0 is what the first
    /// one reads), and the grid of a tile's patches. No further layer runs.
    pub fn outputs(
        &self,
        image: &Image,
        wanted: &[usize],
        compute: Compute,
    ) -> Result<(Vec<Tensor>, Grid), Error> {
        let config = &self.config;
        let pixels = compute.place(&image.pixels)?;
        let (weight, bias) = &self.patches;
        let (patches, grid) = if pixels.dim() == 2 {
            let grid = Grid::new(image.grid, config.squares);
            (
                pixels.f_linear(weight, bias.as_ref())?.f_unsqueeze(0)?,
                grid,
            )
        } else {
            let side = config.patch_size as i64;
            let kernel = weight.f_view([-1, CHANNELS as i64, side, side])?;
            let patches = pixels.f_conv2d(&kernel, bias.as_ref(), side, 0, 1, 1)?;
            let grid = [2, 3].map(|dim| patches.size()[dim] as usize);
            let patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?;
            (patches, Grid::new(grid, None))
        };
        grid.check(patches.size()[1], image)?;
        let mut x = patches;
        if let Some(norm) = &self.patches_norm {
            x = norm.forward(&x)?;
        }
        let places = PatchPlaces::new(config, &grid, compute)?;
        if let (Some(table), Some(learned)) = (&self.positions, config.row.positions) {
            let n_class = i64::from(self.class_token.is_some());
            let own = table.f_narrow(0, n_class, table.size()[0] - n_class)?;
            x = x.f_add(&grid.resampled(&own, learned.resampling)?)?;
            if let Some(token) = &self.class_token {
                let token = token.f_add(&table.f_narrow(0, 0, 1)?)?;
                let token = token.f_expand([x.size()[0], -1, -1], false)?;
                x = Tensor::f_cat(&[token, x], 1)?;
            }
        }
        if let Some(norm) = &self.first_norm {
            x = norm.forward(&x)?;
        }
        x = places.by_windows(x)?;
        let last = wanted.iter().copied().max().unwrap_or(0);
        let mut outputs: Vec<Option<Tensor>> = wanted.iter().map(|_| None).collect();
        for index in 0..=last {
            for (output, _) in (outputs.iter_mut().zip(wanted)).filter(|(_, at)| **at == index) {
                *output = Some(places.out_of_windows(&x)?);
            }
            if index < last {
                x = self.layers[index].forward(config, &x, &places, index)?;
            }
        }
        let outputs = outputs
            .into_iter()
            .map(|output| output.expect("one of the layers"));
        Ok((outputs.collect(), grid))
    }

    /// The last layer's outputs behind the last norm, where there is one.
    pub fn normed(&self, x: Tensor) -> Result<Tensor, Error> {
        match &self.last_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}

/// Red, green, blue.
const CHANNELS: usize = 3;
