//! The crops of an image as one image again, before the projector (Phi-4 multimodal, arXiv:2503.01743).

use super::Image;
use super::config::TowerConfig;
use super::place::Grid;
use crate::model::{Compute, Error, Weights};
use tch::Tensor;

/// Patches of the side of a square whose mean becomes a token.
const SQUARE: usize = 2;

/// What ends rows, and what stands between the crops and the whole image, `[1, width]` each.
#[derive(Debug)]
pub struct Crops {
    newline: Tensor,
    separator: Tensor,
}

impl Crops {
    /// Reads the tensors whose names begin with `prefix`.
    pub fn load(
        tower: &TowerConfig,
        weights: &dyn Weights,
        compute: Compute,
        prefix: &str,
    ) -> Result<Self, Error> {
        let width = tower.width;
        let row = |name: &str, leading: &[usize]| -> Result<Tensor, Error> {
            let shape = [leading, &[width]].concat();
            let tensor = weights.tensor(&format!("{prefix}{name}"), &shape)?;
            Ok(compute.place(&tensor)?.f_view([1, width as i64])?)
        };
        Ok(Self {
            newline: row("sub_img_feature_extensor", &[1, 1, 1])?,
            separator: row("global_img_feature_extensor", &[1, 1])?,
        })
    }

    /// `features` `[1 + crops, patches, width]`, of the whole image first, as tokens `[1, tokens, width]`: the crops without what
    /// padded them, then the whole image. `grid` is that of a crop's patches, each of so many pixels.
    pub fn assembled(
        &self,
        features: &Tensor,
        grid: &Grid,
        image: &Image,
        patch_size: usize,
    ) -> Result<Tensor, Error> {
        let pooled = pooled(features, grid)?;
        let [side_rows, side_columns] = [1, 2].map(|dim| pooled.size()[dim]);
        let width = pooled.size()[3];
        let [crop_rows, crop_columns] = image.grid.map(|n| n as i64);
        let n_crops = crop_rows * crop_columns;
        let crops = pooled
            .f_narrow(0, 1, n_crops)?
            .f_view([crop_rows, crop_columns, side_rows, side_columns, width])?
            .f_transpose(1, 2)?
            .f_reshape([crop_rows * side_rows, crop_columns * side_columns, width])?;
        let [rows, columns] = [(0, grid.rows), (1, grid.columns)].map(|(axis, side)| {
            let patches = image.size[axis] / patch_size;
            // A token is kept where its square's first patch is, which is counted in each crop.
            let whole = patches / side * side.div_ceil(SQUARE);
            (whole + (patches % side).div_ceil(SQUARE)) as i64
        });
        let own = crops.f_narrow(0, 0, rows)?.f_narrow(1, 0, columns)?;
        let parts = [
            self.ended(&own)?,
            self.separator.shallow_clone(),
            self.ended(&pooled.f_get(0)?)?,
        ];
        Ok(Tensor::f_cat(&parts, 0)?.f_unsqueeze(0)?)
    }

    /// `[rows * (columns + 1), width]` of `[rows, columns, width]`.
    fn ended(&self, rows: &Tensor) -> Result<Tensor, Error> {
        let ends = self.newline.f_expand([rows.size()[0], -1], false)?;
        let ended = Tensor::f_cat(&[rows, &ends.f_unsqueeze(1)?], 1)?;
        Ok(ended.f_flatten(0, 1)?)
    }
}

/// Means of squares of patches, `[tiles, rows, columns, width]`; where a square lacks a row or a column, the one before the last
/// is taken again.
fn pooled(features: &Tensor, grid: &Grid) -> Result<Tensor, Error> {
    let size = features.size();
    let shape = [size[0], grid.rows as i64, grid.columns as i64, size[2]];
    let mut x = features.f_view(shape)?.f_permute([0, 3, 1, 2])?;
    let missing = [grid.columns, grid.rows].map(|side| (side % SQUARE) as i64);
    if missing != [0, 0] {
        x = x.f_reflection_pad2d([0, missing[0], 0, missing[1]])?;
    }
    let square = SQUARE as i64;
    let pooled = x.f_avg_pool2d(square, square, 0, false, true, None::<i64>)?;
    Ok(pooled.f_permute([0, 2, 3, 1])?.f_contiguous()?)
}
