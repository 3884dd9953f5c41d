//! A tower that reads all tiles of an image together, with learned embeddings of each arrangement of tiles.
//!
//! As transformers computes it: images have as many tiles as there may be, of zeros where they have fewer, and tiles are padded to
//! whole multiples of 8 tokens. Padding is not attended to by padding, but by all other tokens.

use super::Image;
use super::config::TowerConfig;
use super::layer::TowerLayer;
use super::place::PatchPlaces;
use super::rows::Tower;
use super::tower::CHANNELS;
use crate::model::{Compute, Error, Norm, NormKind, Weights};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Tokens of a tile are padded to a multiple of this.
const TOKENS: i64 = 8;

/// torch's epsilon, which the norms around the layers have.
const EPS: f64 = 1e-5;

/// What a tiled tower has beside its first layers.
#[derive(Debug, Clone)]
pub struct TiledConfig {
    /// The layers after them.
    global: Box<TowerConfig>,
    pub n_tiles: usize,
    /// Rows and columns of the arrangements of tiles that have embeddings; the first row of a table is for none.
    arrangements: Vec<[usize; 2]>,
    /// The first layers whose outputs are features too.
    kept: Vec<usize>,
}

impl TiledConfig {
    /// Of the tower whose first layers are `config`, and whose others are those of the row `global`.
    pub fn new(config: &TowerConfig, global: &'static Tower) -> Result<Self, Error> {
        let keys = config.keys();
        let key = "supported_aspect_ratios";
        let pairs = keys.get(key).and_then(Value::as_array).map(|list| {
            let pair = |value: &Value| {
                let side = |index: usize| Some(value.get(index)?.as_u64()? as usize);
                Some([side(0)?, side(1)?])
            };
            list.iter().map(pair).collect::<Option<Vec<_>>>()
        });
        let kept = config.indices("intermediate_layers_indices")?;
        if kept.iter().any(|&layer| layer >= config.n_layers) {
            let expected = format!("layers below num_hidden_layers, {}", config.n_layers);
            return Err(keys.invalid("intermediate_layers_indices", expected));
        }
        let width = config.width * (1 + kept.len());
        if keys.size("vision_output_dim")? != width {
            return Err(keys.invalid("vision_output_dim", format!("{width}, the layers' outputs")));
        }
        if config
            .image_size
            .is_none_or(|side| !side.is_multiple_of(config.patch_size))
        {
            return Err(keys.invalid("image_size", "a multiple of patch_size"));
        }
        Ok(Self {
            global: Box::new(TowerConfig {
                row: global,
                n_layers: keys.size("num_global_layers")?,
                ..config.clone()
            }),
            n_tiles: keys.size("max_num_tiles")?,
            arrangements: (pairs.flatten())
                .ok_or_else(|| keys.invalid(key, "a list of numbers of rows and columns"))?,
            kept,
        })
    }

    /// The layers after the first ones; their linears have the same names and shapes.
    pub fn global(&self) -> &TowerConfig {
        &self.global
    }

    /// How many layers' outputs a feature has.
    pub fn n_outputs(&self) -> usize {
        1 + self.kept.len()
    }
}

/// A tiled tower with its weights.
#[derive(Debug)]
pub struct TiledTower {
    config: TowerConfig,
    tiled: TiledConfig,
    /// `[width, channels, patch_size, patch_size]`
    patches: Tensor,
    /// `[1, 1, width]`
    class_token: Tensor,
    /// `[tokens, width]`, and for each arrangement `[tiles * tokens * width]`; how much the second counts, `[1]`.
    positions: [Tensor; 3],
    /// For each arrangement `[tiles * width]`, times a number: before the first layers and before the others.
    arrangements: [Tensor; 2],
    norms: [Norm; 2],
    layers: Vec<TowerLayer>,
    global: Vec<TowerLayer>,
}

impl TiledTower {
    /// Reads the tensors whose names begin with `prefix`.
    pub fn load(
        config: &TowerConfig,
        tiled: &TiledConfig,
        weights: &dyn Weights,
        compute: Compute,
        prefix: &str,
    ) -> Result<Self, Error> {
        let width = config.width;
        let tensor = |name: &str, shape: &[usize]| -> Result<Tensor, Error> {
            compute.place(&weights.tensor(&format!("{prefix}{name}"), shape)?)
        };
        let gate = |name: &str| Ok::<_, Error>(tensor(name, &[1])?.f_tanh()?);
        let norm = |name: &str| {
            let name = format!("{prefix}{name}");
            Norm::load(weights, compute, NormKind::Layer, EPS, &name, width)
        };
        let layers = |config: &TowerConfig| -> Result<Vec<TowerLayer>, Error> {
            let layers = (0..config.n_layers).map(|index| {
                let prefix = format!("{prefix}{}.{index}.", config.row.layers);
                TowerLayer::load(config, weights, compute, &prefix)
            });
            layers.collect()
        };
        let n_rows = tiled.arrangements.len() + 1;
        let n_tokens = config.n_positions;
        let arrangement = |name: &str| -> Result<Tensor, Error> {
            let table = format!("{name}.embedding.weight");
            let table = tensor(&table, &[n_rows, tiled.n_tiles * width])?;
            Ok(table.f_mul(&gate(&format!("{name}.gate"))?)?)
        };
        let side = config.patch_size;
        let patches = format!("{}.weight", config.row.patches);
        Ok(Self {
            patches: tensor(&patches, &[width, CHANNELS, side, side])?,
            class_token: tensor("class_embedding", &[width])?.f_view([1, 1, width as i64])?,
            positions: [
                tensor("gated_positional_embedding.embedding", &[n_tokens, width])?,
                tensor(
                    "gated_positional_embedding.tile_embedding.weight",
                    &[n_rows, tiled.n_tiles * n_tokens * width],
                )?,
                gate("gated_positional_embedding.gate")?,
            ],
            arrangements: [
                arrangement("pre_tile_positional_embedding")?,
                arrangement("post_tile_positional_embedding")?,
            ],
            norms: [norm("layernorm_pre")?, norm("layernorm_post")?],
            layers: layers(config)?,
            global: layers(&tiled.global)?,
            config: config.clone(),
            tiled: tiled.clone(),
        })
    }

    /// The features `[tiles, tokens, width]` of an image, padding tiles among them, and how many tokens are the image's: the first.
    pub fn features(&self, image: &Image, compute: Compute) -> Result<(Tensor, usize), Error> {
        let (config, tiled) = (&self.config, &self.tiled);
        let (n_tiles, width) = (tiled.n_tiles as i64, config.width as i64);
        let row = self.arrangement(image)?;
        let pixels = compute.place(&image.pixels)?;
        let n_own = pixels.size()[0];
        let missing = n_tiles - n_own;
        let pixels = pixels.f_constant_pad_nd([0, 0, 0, 0, 0, 0, 0, missing])?;
        let side = config.patch_size as i64;
        let patches = pixels.f_conv2d(&self.patches, None::<Tensor>, side, 0, 1, 1)?;
        let patches = patches.f_flatten(2, 3)?.f_transpose(1, 2)?;
        let arranged = |x: &Tensor, table: &Tensor| -> Result<Tensor, Error> {
            Ok(x.f_add(&table.f_get(row)?.f_view([n_tiles, 1, width])?)?)
        };
        let patches = arranged(&patches, &self.arrangements[0])?;
        let class_token = self.class_token.f_expand([n_tiles, -1, -1], false)?;
        let mut x = Tensor::f_cat(&[class_token, patches], 1)?;
        let n_tokens = x.size()[1];
        let [own, by_tile, share] = &self.positions;
        let by_tile = by_tile.f_get(row)?.f_view([n_tiles, n_tokens, width])?;
        // Between the two, as the share says.
        x = x.f_add(&own.f_mul(&share.f_neg()?.f_add_scalar(1.0)?)?)?;
        x = self.norms[0].forward(&x.f_add(&by_tile.f_mul(share)?)?)?;
        let padding = (TOKENS - n_tokens % TOKENS) % TOKENS;
        let padded = n_tokens + padding;
        let mut x = (x.f_constant_pad_nd([0, 0, 0, padding])?).f_view([1, -1, width])?;
        let places = PatchPlaces::masked(mask([n_own, n_tiles], [n_tokens, padded], compute)?);
        let unpadded = |x: &Tensor| -> Result<Tensor, Error> {
            Ok(x.f_view([n_tiles, padded, width])?
                .f_narrow(1, 0, n_tokens)?)
        };
        let mut kept: Vec<Option<Tensor>> = tiled.kept.iter().map(|_| None).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(config, &x, &places, index)?;
            for (kept, _) in (kept.iter_mut().zip(&tiled.kept)).filter(|(_, at)| **at == index) {
                *kept = Some(unpadded(&x)?);
            }
        }
        x = self.norms[1].forward(&x)?;
        let tiles = x.f_view([n_tiles, padded, width])?;
        x = arranged(&tiles, &self.arrangements[1])?.f_view([1, -1, width])?;
        for (index, layer) in self.global.iter().enumerate() {
            x = layer.forward(&tiled.global, &x, &places, index)?;
        }
        let mut features = vec![unpadded(&x)?];
        let kept: Vec<Tensor> = kept.into_iter().flatten().collect();
        if !kept.is_empty() {
            // Number by number of all of them.
            features.push(Tensor::f_stack(&kept, -1)?.f_flatten(-2, -1)?);
        }
        Ok((Tensor::f_cat(&features, -1)?, (n_own * n_tokens) as usize))
    }

    /// The row of the tables for an image's arrangement of tiles.
    fn arrangement(&self, image: &Image) -> Result<i64, Error> {
        let size = image.pixels.size();
        let side = self.config.image_size.unwrap_or(0) as i64;
        let [rows, columns] = image.grid;
        let fits = size == [(rows * columns) as i64, CHANNELS as i64, side, side]
            && rows * columns <= self.tiled.n_tiles;
        let mut arrangements = self.tiled.arrangements.iter();
        let found = arrangements.position(|arrangement| *arrangement == image.grid);
        found.filter(|_| fits).map(|index| index as i64 + 1).ok_or_else(|| {
            Error::Image(format!(
                "pixel values {size:?} are no {rows} rows of {columns} tiles of {side} pixels, or the tower has no embedding \
                 of these; it has of {:?}",
                self.tiled.arrangements
            ))
        })
    }
}

/// Which tokens attend to which, `[1, 1, tokens, tokens]`, in so many tiles with so many tokens (own ones, and all).
fn mask(
    [own_tiles, tiles]: [i64; 2],
    [own_tokens, tokens]: [i64; 2],
    compute: Compute,
) -> Result<Tensor, Error> {
    let is_own = Tensor::f_zeros([tiles, tokens], (Kind::Bool, compute.device))?;
    let mut own = is_own
        .f_narrow(0, 0, own_tiles)?
        .f_narrow(1, 0, own_tokens)?;
    let _ = own.f_fill_(1.0)?;
    let is_own = is_own.f_view([1, 1, -1, 1])?;
    Ok(is_own.f_logical_or(&is_own.f_transpose(2, 3)?)?)
}
