//! The tiles of an image of any resolution as one image again (LLaVA-NeXT, and LLaVA-OneVision, arXiv:2408.03326).

use super::Image;
use super::rows::Tiles;
use crate::model::Error;
use crate::model::keys::Keys;
use serde_json::Value;
use tch::{Kind, Tensor};

/// How many whole tiles' patches there may be at most, where there is a limit.
pub fn most_patches(tiles: Tiles, json: &Value) -> Result<Option<usize>, Error> {
    if tiles != Tiles::UnpaddedAtMost {
        return Ok(None);
    }
    let keys = Keys { json, path: "" };
    let key = "vision_aspect_ratio";
    let named = keys
        .str(key)?
        .and_then(|name| name.strip_prefix("anyres_max_"));
    let most = named.and_then(|number| number.parse().ok());
    most.map(Some)
        .ok_or_else(|| keys.unsupported(key, "anyres_max_ and a number"))
}

/// The first of `features` `[tiles, patches, hidden]`, which is the whole image, and the others without what padded them, each
/// row ended by `newline`: `[tokens, hidden]`.
pub fn unpadded(
    features: &Tensor,
    newline: &Tensor,
    image: &Image,
    most: Option<usize>,
) -> Result<Tensor, Error> {
    let [n_tiles, n_patches, width] = [0, 1, 2].map(|dim| features.size()[dim]);
    let whole = features.f_get(0)?;
    let newline = newline.f_view([1, -1])?;
    if n_tiles == 1 {
        return Ok(Tensor::f_cat(&[whole, newline], 0)?);
    }
    let [tile_rows, tile_columns] = image.grid.map(|n| n as i64);
    let side = (n_patches as f64).sqrt() as i64;
    if tile_rows * tile_columns != n_tiles - 1 || side * side != n_patches {
        return Err(Error::Image(format!(
            "{n_tiles} tiles of {n_patches} patches are not an image and {tile_rows} rows of {tile_columns} square tiles"
        )));
    }
    let mut rows = features
        .f_narrow(0, 1, n_tiles - 1)?
        .f_view([tile_rows, tile_columns, side, side, width])?
        .f_transpose(1, 2)?
        .f_reshape([tile_rows * side, tile_columns * side, width])?;
    for (dim, padding) in padding(image.size, [tile_rows * side, tile_columns * side]) {
        rows = rows.f_narrow(dim, padding, rows.size()[dim as usize] - 2 * padding)?;
    }
    if let Some(most) = most {
        let (height, columns) = (rows.size()[0] as f64, rows.size()[1] as f64);
        let ratio = (height * columns / (most as f64 * (side * side) as f64)).sqrt();
        if ratio > 1.1 {
            let shape = [height, columns].map(|size| (size / ratio).floor() as i64);
            let image = rows.f_permute([2, 0, 1])?.f_unsqueeze(0)?;
            let image = image.f_to_kind(Kind::Float)?;
            let image = image.f_upsample_bilinear2d(shape, false, None, None)?;
            let image = image.f_squeeze_dim(0)?.f_permute([1, 2, 0])?;
            rows = image.f_to_kind(features.kind())?;
        }
    }
    let ends = newline
        .f_expand([rows.size()[0], -1], false)?
        .f_unsqueeze(1)?;
    let rows = Tensor::f_cat(&[rows, ends], 1)?.f_flatten(0, 1)?;
    Ok(Tensor::f_cat(&[whole, rows], 0)?)
}

/// How many of `current` rows or columns, counted from both ends, padded an image of `size` to this shape.
fn padding(size: [usize; 2], current: [i64; 2]) -> [(i64, i64); 1] {
    let [height, width] = size.map(|size| size as f64);
    let [rows, columns] = current.map(|size| size as f64);
    // Rounded as Python does, so that what is whole but for the last bits is whole.
    let scaled = |length: f64, scale: f64| ((length * scale * 1e7).round() / 1e7) as i64;
    if width / height > columns / rows {
        [(0, (current[0] - scaled(height, columns / width)) / 2)]
    } else {
        [(1, (current[1] - scaled(width, rows / height)) / 2)]
    }
}
