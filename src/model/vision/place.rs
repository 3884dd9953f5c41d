//! Where a patch is: the order of patches, learned positions, rotary ones, windows.

use super::Image;
use super::config::TowerConfig;
use super::rows::{Axial, Resampling};
use crate::model::{Compute, Error};
use tch::{Device, Kind, Tensor};

/// The patches of one tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub rows: usize,
    pub columns: usize,
    /// The side of the squares that follow each other, each row by row; without them it is all patches, row by row.
    pub squares: Option<usize>,
}

impl Grid {
    pub fn new([rows, columns]: [usize; 2], squares: Option<usize>) -> Self {
        Self {
            rows,
            columns,
            squares,
        }
    }

    /// Refuses a number of patches that is not the grid's, and squares that do not fit.
    pub fn check(&self, n_patches: i64, image: &Image) -> Result<(), Error> {
        let side = self.squares.unwrap_or(1);
        let fits = self.rows.is_multiple_of(side) && self.columns.is_multiple_of(side);
        if fits && n_patches as usize == self.rows * self.columns {
            return Ok(());
        }
        Err(Error::Image(format!(
            "pixel values {:?} are no {} rows of {} patches in squares of {side}",
            image.pixels.size(),
            self.rows,
            self.columns
        )))
    }

    /// Row and column of each patch, in order.
    fn cells(&self) -> Vec<[usize; 2]> {
        let side = self.squares.unwrap_or(1);
        let mut cells = Vec::with_capacity(self.rows * self.columns);
        for row in (0..self.rows).step_by(side) {
            for column in (0..self.columns).step_by(side) {
                for inner in 0..side * side {
                    cells.push([row + inner / side, column + inner % side]);
                }
            }
        }
        cells
    }

    /// `[rows * columns, width]` of a square table of positions `[side^2, width]`, or of two tables `[side, width]` after each
    /// other, in the order of the patches.
    pub fn resampled(&self, table: &Tensor, resampling: Resampling) -> Result<Tensor, Error> {
        let size = table.size();
        let side = (size[0] as f64).sqrt() as i64;
        let (rows, columns) = (self.rows as i64, self.columns as i64);
        let has_its_shape = (rows, columns) == (side, side);
        match resampling {
            Resampling::ByAxis => self.by_axis(table),
            Resampling::Never if !has_its_shape => Err(Error::Image(format!(
                "{rows} rows of {columns} patches, but the tower has positions for {side} of {side}"
            ))),
            Resampling::Never | Resampling::Bilinear | Resampling::Bicubic if has_its_shape => {
                self.in_order(table.shallow_clone())
            }
            Resampling::Never | Resampling::Nearest => {
                self.nearest_of(table, &[[self.rows, self.columns]])
            }
            Resampling::Bilinear | Resampling::Bicubic => {
                let square = table
                    .f_view([1, side, side, size[1]])?
                    .f_permute([0, 3, 1, 2])?;
                let square = square.f_to_kind(Kind::Float)?;
                let shape = [rows, columns];
                let made = if resampling == Resampling::Bilinear {
                    square.f_upsample_bilinear2d(shape, true, None, None)?
                } else {
                    square.f_upsample_bicubic2d(shape, false, None, None)?
                };
                let made = made.f_permute([0, 2, 3, 1])?.f_reshape([-1, size[1]])?;
                self.in_order(made.f_to_kind(table.kind())?)
            }
        }
    }

    /// `[tiles * rows * columns, width]` of a square table of positions `[side^2, width]`: each patch takes the position at its
    /// place, rounded down, among those rows and columns of its tile that are `kept`; the others take the first position.
    pub fn nearest_of(&self, table: &Tensor, kept: &[[usize; 2]]) -> Result<Tensor, Error> {
        let side = (table.size()[0] as f64).sqrt() as i64;
        let cells = self.cells();
        let tiles = kept.iter().flat_map(|&[rows, columns]| {
            let place = move |&[row, column]: &[usize; 2]| {
                if row >= rows || column >= columns {
                    return 0;
                }
                nearest(row, rows, side) * side + nearest(column, columns, side)
            };
            cells.iter().map(place)
        });
        let ids = Tensor::f_from_slice(&tiles.collect::<Vec<_>>())?;
        Ok(table.f_index_select(0, &ids.f_to_device(table.device())?)?)
    }

    /// Which patches of each tile lie in the rows and columns that are `kept`, `[tiles, 1, 1, patches]`.
    pub fn mask(&self, kept: &[[usize; 2]], device: Device) -> Result<Tensor, Error> {
        let cells = self.cells();
        let tiles = kept.iter().flat_map(|&[rows, columns]| {
            (cells.iter()).map(move |&[row, column]| row < rows && column < columns)
        });
        let mask = Tensor::f_from_slice(&tiles.collect::<Vec<_>>())?;
        let mask = mask.f_view([kept.len() as i64, 1, 1, -1])?;
        Ok(mask.f_to_device(device)?)
    }

    /// Of the whole `image`, which comes first, and of each of its tiles, row by row, the rows and columns of patches of so many
    /// pixels that are not padding.
    pub fn kept(&self, image: &Image, patch_size: usize) -> Result<Vec<[usize; 2]>, Error> {
        let [tile_rows, tile_columns] = image.grid;
        let [rows, columns] = image.size.map(|side| side / patch_size);
        let mut kept = vec![[self.rows, self.columns]];
        for row in 0..tile_rows {
            for column in 0..tile_columns {
                kept.push([
                    rows.saturating_sub(row * self.rows).min(self.rows),
                    columns
                        .saturating_sub(column * self.columns)
                        .min(self.columns),
                ]);
            }
        }
        let fits = image.pixels.size()[0] as usize == kept.len();
        if fits && kept.iter().flatten().all(|&side| side > 0) {
            return Ok(kept);
        }
        Err(Error::Image(format!(
            "pixel values {:?} are not an image and {tile_rows} rows of {tile_columns} tiles, of which {rows} rows of \
             {columns} patches are no padding",
            image.pixels.size()
        )))
    }

    /// The sums of what the first table has for the columns and the second for the rows.
    fn by_axis(&self, tables: &Tensor) -> Result<Tensor, Error> {
        let len = tables.size()[0] / 2;
        if self.rows.max(self.columns) as i64 > len {
            return Err(Error::Image(format!(
                "{} rows of {} patches, but the tower has positions for {len} of {len}",
                self.rows, self.columns
            )));
        }
        let cells = self.cells();
        let of = |axis: usize, first: i64| -> Result<Tensor, Error> {
            let ids = cells.iter().map(|cell| first + cell[axis] as i64);
            let ids = Tensor::f_from_slice(&ids.collect::<Vec<_>>())?;
            Ok(tables.f_index_select(0, &ids.f_to_device(tables.device())?)?)
        };
        Ok(of(1, 0)?.f_add(&of(0, len)?)?)
    }

    /// Rows that are in the order of rows, in that of the patches.
    fn in_order(&self, x: Tensor) -> Result<Tensor, Error> {
        if self.squares.is_none() {
            return Ok(x);
        }
        let cells = self.cells().into_iter();
        let ids = cells.map(|[row, column]| (row * self.columns + column) as i64);
        let ids = Tensor::f_from_slice(&ids.collect::<Vec<_>>())?;
        Ok(x.f_index_select(0, &ids.f_to_device(x.device())?)?)
    }
}

/// Of `side` places, that of the patch `at` of `of`. As transformers compares them, rounded to float32.
fn nearest(at: usize, of: usize, side: i64) -> i64 {
    let place = (at as f32 * (1.0 / of as f32)).min((1.0 - 1e-6) as f32);
    let step = 1.0 / side as f64;
    let ends = (1..side).map(|end| (step + (end - 1) as f64 * step) as f32);
    ends.filter(|&end| end <= place).count() as i64
}

/// What the layers of a tower need to know of the places of an image's patches.
#[derive(Debug)]
pub struct PatchPlaces {
    /// Cosines and sines, `[tokens, 1, parts, head_dim / parts]` float32, of the parts of a head that turn by themselves; the sines
    /// negated for the first half of each.
    turns: Option<[Tensor; 2]>,
    windows: Option<Windows>,
    /// Which tokens attend to which, where not all do to all.
    mask: Option<Tensor>,
}

#[derive(Debug)]
struct Windows {
    /// The patches, window by window, and what undoes that.
    order: [Tensor; 2],
    lengths: Vec<i64>,
    /// The layers that attend to everything.
    whole: Vec<usize>,
}

impl PatchPlaces {
    pub fn new(config: &TowerConfig, grid: &Grid, compute: Compute) -> Result<Self, Error> {
        let windows = (config.windows.as_ref())
            .map(|(side, whole)| Windows::new(grid, *side, whole.clone(), compute.device));
        let windows = windows.transpose()?;
        let turns = match config.row.rotary {
            None => None,
            Some(axial) => {
                let turns = turns(config, grid, axial)?;
                let placed = |tensor: &Tensor| -> Result<Tensor, Error> {
                    let tensor = tensor.f_to_device(compute.device)?;
                    Ok(match &windows {
                        None => tensor,
                        Some(windows) => tensor.f_index_select(0, &windows.order[0])?,
                    })
                };
                Some([placed(&turns[0])?, placed(&turns[1])?])
            }
        };
        Ok(Self {
            turns,
            windows,
            mask: None,
        })
    }

    /// Nothing turns and there are no windows, but tokens attend only to those that the `mask` says, `[1, 1, tokens, tokens]` or
    /// `[tiles, 1, 1, tokens]`.
    pub fn masked(mask: Tensor) -> Self {
        Self {
            turns: None,
            windows: None,
            mask: Some(mask),
        }
    }

    /// Which tokens attend to which, where not all do to all.
    pub fn mask(&self) -> Option<&Tensor> {
        self.mask.as_ref()
    }

    /// `x` `[tiles, tokens, heads, head_dim]` turned by where the patches are.
    pub fn turned(&self, x: &Tensor) -> Result<Tensor, Error> {
        let Some([cos, sin]) = &self.turns else {
            return Ok(x.shallow_clone());
        };
        let (size, part) = (x.size(), cos.size());
        let parts = [size[0], size[1], size[2], part[2], part[3]];
        let wide = x.f_to_kind(Kind::Float)?.f_reshape(parts)?;
        let swapped = wide.f_roll(part[3] / 2, 4)?;
        let turned = swapped.f_mul(sin)?.f_addcmul_(&wide, cos)?;
        Ok(turned.f_to_kind(x.kind())?.f_reshape(size)?)
    }

    /// Lengths of the runs of tokens that attend to each other in layer `index`.
    pub fn spans(&self, index: usize, n_tokens: i64) -> Vec<i64> {
        match &self.windows {
            Some(windows) if !windows.whole.contains(&index) => windows.lengths.clone(),
            _ => vec![n_tokens],
        }
    }

    pub fn by_windows(&self, x: Tensor) -> Result<Tensor, Error> {
        match &self.windows {
            None => Ok(x),
            Some(windows) => Ok(x.f_index_select(1, &windows.order[0])?),
        }
    }

    pub fn out_of_windows(&self, x: &Tensor) -> Result<Tensor, Error> {
        match &self.windows {
            None => Ok(x.shallow_clone()),
            Some(windows) => Ok(x.f_index_select(1, &windows.order[1])?),
        }
    }
}

impl Windows {
    /// Windows of `side` squares of patches; those at the right and at the bottom are smaller.
    fn new(grid: &Grid, side: usize, whole: Vec<usize>, device: Device) -> Result<Self, Error> {
        let square = grid.squares.unwrap_or(1);
        let cells = grid.cells();
        let window = |[row, column]: [usize; 2]| [row, column].map(|at| at / square / side);
        let mut order: Vec<usize> = (0..cells.len()).collect();
        order.sort_by_key(|&index| window(cells[index]));
        let mut lengths = Vec::new();
        let mut last = None;
        for &index in &order {
            if last == Some(window(cells[index])) {
                *lengths.last_mut().expect("a window") += 1;
            } else {
                lengths.push(1);
                last = Some(window(cells[index]));
            }
        }
        let mut back = vec![0; order.len()];
        for (place, &index) in order.iter().enumerate() {
            back[index] = place as i64;
        }
        let order: Vec<i64> = order.into_iter().map(|index| index as i64).collect();
        let placed = |ids: &[i64]| Tensor::f_from_slice(ids)?.f_to_device(device);
        Ok(Self {
            order: [placed(&order)?, placed(&back)?],
            lengths,
            whole,
        })
    }
}

fn turns(config: &TowerConfig, grid: &Grid, axial: Axial) -> Result<[Tensor; 2], Error> {
    let dim = config.head_dim as i64;
    let frequencies = |dim: i64| -> Result<Tensor, Error> {
        let exponents = Tensor::f_arange_start_step(0, dim, 2, (Kind::Float, Device::Cpu))?;
        let exponents = exponents.f_div_scalar(dim as f64)?;
        Ok(Tensor::f_pow_scalar(config.rope_theta, &exponents)?.f_reciprocal()?)
    };
    let [by_row, by_column] = match axial {
        Axial::SameFrequencies | Axial::ByHalves => [frequencies(dim / 2)?, frequencies(dim / 2)?],
        Axial::EveryOther => {
            let all = frequencies(dim)?;
            [0, 1].map(|start| all.slice(0, start, dim / 2, 2))
        }
    };
    let cells = grid.cells();
    let at = |axis: usize| -> Result<Tensor, Error> {
        let places: Vec<f32> = cells.iter().map(|cell| cell[axis] as f32).collect();
        Ok(Tensor::f_from_slice(&places)?.f_view([-1, 1])?)
    };
    let (rows, columns) = (at(0)?.f_mul(&by_row)?, at(1)?.f_mul(&by_column)?);
    // [tokens, 1, parts, dim / parts / 2]
    let angles = if axial == Axial::ByHalves {
        Tensor::f_stack(&[columns, rows], 1)?
    } else {
        Tensor::f_cat(&[rows, columns], 1)?.f_unsqueeze(1)?
    };
    let angles = angles.f_unsqueeze(1)?;
    let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
    Ok([
        Tensor::f_cat(&[&cos, &cos], 3)?,
        Tensor::f_cat(&[&sin.f_neg()?, &sin], 3)?,
    ])
}
