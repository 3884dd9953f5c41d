//! A tower with its weights, and what it makes of an image.

use super::Image;
use super::config::TowerConfig;
use super::layer::TowerLayer;
use super::place::{Grid, PatchPlaces};
use super::rows::{PatchesForm, Resampling};
use crate::model::{Compute, Error, Norm, Weights};
use tch::Tensor;

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
        let shape = match row.patches_form {
            PatchesForm::Linear => vec![width, CHANNELS * side * side],
            PatchesForm::Convolution if config.squares.is_some() => {
                vec![width, CHANNELS, config.frames, side, side]
            }
            PatchesForm::Convolution => vec![width, CHANNELS, side, side],
        };
        let patches = tensor(&format!("{}.weight", row.patches), &shape)?.f_flatten(1, -1)?;
        let bias = row
            .patches_bias
            .then(|| tensor(&format!("{}.bias", row.patches), &[width]));
        let positions = row.positions.map(|learned| {
            let table = [config.n_positions, width];
            let leading: &[usize] = match learned.resampling {
                Resampling::ByAxis => &[2],
                _ if learned.wrapped => &[1],
                _ => &[],
            };
            let shape = [leading, &table].concat();
            Ok::<_, Error>(tensor(learned.name, &shape)?.f_view([-1, width as i64])?)
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
        let pixels = match config.row.patches_form {
            PatchesForm::Convolution => compute.place(&image.pixels)?,
            PatchesForm::Linear => {
                let spread = image.pixels.f_sub_scalar(0.5)?.f_mul_scalar_(2.0)?;
                compute.place(&spread)?
            }
        };
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
        let kept = (config.row.padded_tiles).then(|| grid.kept(image, config.patch_size));
        let kept = kept.transpose()?;
        let places = match &kept {
            None => PatchPlaces::new(config, &grid, compute)?,
            Some(kept) => PatchPlaces::masked(grid.mask(kept, compute.device)?),
        };
        if let (Some(table), Some(learned)) = (&self.positions, config.row.positions) {
            let n_class = i64::from(self.class_token.is_some());
            let own = table.f_narrow(0, n_class, table.size()[0] - n_class)?;
            let placed = match &kept {
                None => grid.resampled(&own, learned.resampling)?,
                Some(kept) => grid.nearest_of(&own, kept)?.f_view_as(&x)?,
            };
            x = x.f_add(&placed)?;
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
pub const CHANNELS: usize = 3;
