//! How an image of a size is resized and cut: numbers alone, by the rule of each processor.

use super::Error;

/// A processor's rule.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// One image, resized, then cut to a size from its middle.
    Whole {
        resized: Resized,
        cropped: Option<[u32; 2]>,
    },
    /// Patches of an image whose sides are whole squares of patches and whose area lies between two bounds.
    Patches {
        patch: u32,
        square: u32,
        frames: u32,
        area: [f64; 2],
        /// Whether the bounds are of all frames together, and narrow images are widened first.
        counts_frames: bool,
    },
    /// The whole image, and tiles of it in the best of some resolutions.
    AnyResolution {
        tile: u32,
        /// Heights and widths.
        resolutions: Vec<[u32; 2]>,
    },
    /// Tiles of an image whose longer side is given, and the whole image behind them.
    Split {
        longest: u32,
        tile: u32,
        split: bool,
    },
    /// Tiles in the arrangement that is nearest to the image's shape, and the whole image behind them.
    Canvas {
        tile: [u32; 2],
        /// How many there are at least and at most.
        tiles: [u32; 2],
    },
    /// Tiles of an image that is set, its shape kept, into the smallest arrangement of tiles that it need not be shrunk for.
    Fitted { tile: u32, most: u32 },
    /// The whole canvas, and tiles of it: the smallest arrangement of tiles that covers the image, or where that takes too many,
    /// the one that is nearest to its shape. The image is set into its corner, its shape kept.
    Covered { tile: u32, patch: u32, most: u32 },
    /// Patches of an image as large as a number of squares of patches allows.
    Budget { patch: u32, square: u32, most: u32 },
    /// One image of whole patches, no side longer than given.
    Longest { longest: [u32; 2], patch: u32 },
}

/// A size that an image is brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resized {
    Exactly([u32; 2]),
    /// The shorter side, with the shape kept.
    ShortestEdge(u32),
}

/// Height and width.
pub type Size = [u32; 2];

/// What becomes of an image of a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub tiles: Vec<Tile>,
    /// Rows and columns of the tiles that are parts of the image; of patches where there are patches.
    pub grid: [usize; 2],
}

/// A picture that the tower reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile {
    /// The image is brought to these sizes, one after the other.
    pub resized: Vec<Size>,
    /// Then it is set into one of this size, of padding, at this row and column, which may lie outside.
    pub canvas: Size,
    pub at: [i64; 2],
    /// The normalized canvas is brought to this size, without antialiasing.
    pub sampled: Option<Size>,
}

impl Tile {
    fn whole(size: Size) -> Self {
        Self {
            resized: vec![size],
            canvas: size,
            at: [0, 0],
            sampled: None,
        }
    }

    /// Height and width of the picture itself.
    pub fn size(&self) -> Size {
        self.sampled.unwrap_or(self.canvas)
    }
}

impl Rule {
    /// What becomes of an image of this height and width.
    pub fn plan(&self, size: Size) -> Result<Plan, Error> {
        let [height, width] = size;
        if height == 0 || width == 0 {
            return Err(Error::Shape {
                height,
                width,
                reason: "an image without pixels".to_owned(),
            });
        }
        Ok(match self {
            Self::Whole { resized, cropped } => {
                let resized = resized.of(size);
                let mut tile = Tile::whole(resized);
                if let Some(canvas) = *cropped {
                    tile.canvas = canvas;
                    tile.at = [0, 1].map(|side| centred(resized[side], canvas[side]));
                }
                one(tile)
            }
            Self::Patches {
                patch,
                square,
                frames,
                area,
                counts_frames,
            } => {
                let frames = if *counts_frames { *frames } else { 1 };
                let resized = smart(size, patch * square, *area, frames, *counts_frames)?;
                Plan {
                    tiles: vec![Tile::whole(resized)],
                    grid: resized.map(|side| (side / patch) as usize),
                }
            }
            Self::AnyResolution { tile, resolutions } => any_resolution(size, *tile, resolutions)?,
            Self::Split {
                longest,
                tile,
                split,
            } => split_plan(size, *longest, *tile, *split),
            Self::Canvas { tile, tiles } => canvas(size, *tile, *tiles),
            Self::Fitted { tile, most } => fitted(size, *tile, *most),
            Self::Covered { tile, most, .. } => covered(size, *tile, *most)?,
            Self::Budget {
                patch,
                square,
                most,
            } => {
                let resized = within_budget(size, patch * square, *most)?;
                Plan {
                    tiles: vec![Tile::whole(resized)],
                    grid: resized.map(|side| (side / patch) as usize),
                }
            }
            Self::Longest { longest, patch } => {
                let [h, w] = [0, 1].map(|side| f64::from(size[side]));
                let ratio = (h / f64::from(longest[0])).max(w / f64::from(longest[1]));
                let side = |side: u32| {
                    let fitting = if ratio > 1.0 {
                        (f64::from(side) / ratio).floor() as u32
                    } else {
                        side
                    };
                    fitting.max(1).div_ceil(*patch) * patch
                };
                let resized = [side(height), side(width)];
                Plan {
                    tiles: vec![Tile::whole(resized)],
                    grid: resized.map(|side| (side / patch) as usize),
                }
            }
        })
    }

    /// Height and width of what the tower keeps of an image of `size`: its own, or of the part of a canvas whose patches are
    /// not padding alone.
    pub fn kept(&self, size: Size, plan: &Plan) -> Size {
        match self {
            Self::Covered { patch, .. } => {
                let tile = &plan.tiles[0];
                [0, 1].map(|side| {
                    let padding = tile.canvas[side] - tile.resized[0][side];
                    tile.canvas[side] - padding / patch * patch
                })
            }
            _ => size,
        }
    }
}

impl Resized {
    fn of(self, [height, width]: Size) -> Size {
        match self {
            Self::Exactly(size) => size,
            Self::ShortestEdge(edge) => {
                let long = |long: u32, short: u32| {
                    (f64::from(edge) * f64::from(long) / f64::from(short)) as u32
                };
                if width <= height {
                    [long(height, width), edge]
                } else {
                    [edge, long(width, height)]
                }
            }
        }
    }
}

fn one(tile: Tile) -> Plan {
    Plan {
        tiles: vec![tile],
        grid: [1, 1],
    }
}

/// Where an image's side begins in a canvas that is cut from its middle or laid around it.
fn centred(side: u32, canvas: u32) -> i64 {
    let (side, canvas) = (i64::from(side), i64::from(canvas));
    if side >= canvas {
        -((side - canvas) / 2)
    } else {
        (canvas - side) / 2
    }
}

/// Sides that are multiples of `factor`, the area between the bounds, the shape almost kept.
fn smart(
    [height, width]: Size,
    factor: u32,
    [least, most]: [f64; 2],
    frames: u32,
    widens: bool,
) -> Result<Size, Error> {
    let (mut h, mut w) = (f64::from(height), f64::from(width));
    let factor = f64::from(factor);
    if widens && (h < factor || w < factor) {
        let scale = (factor / h).max(factor / w);
        (h, w) = ((h * scale).floor(), (w * scale).floor());
    }
    if h.max(w) / h.min(w) > 200.0 {
        return Err(Error::Shape {
            height,
            width,
            reason: "one side is more than 200 times as long as the other".to_owned(),
        });
    }
    let frames = f64::from(frames);
    let nearest = |side: f64| (side / factor).round_ties_even() * factor;
    let (mut made_h, mut made_w) = (nearest(h), nearest(w));
    if frames * made_h * made_w > most {
        let shrink = (frames * h * w / most).sqrt();
        let side = |side: f64| factor.max((side / shrink / factor).floor() * factor);
        (made_h, made_w) = (side(h), side(w));
    } else if frames * made_h * made_w < least {
        let grow = (least / (frames * h * w)).sqrt();
        let side = |side: f64| (side * grow / factor).ceil() * factor;
        (made_h, made_w) = (side(h), side(w));
    }
    Ok([made_h as u32, made_w as u32])
}

fn any_resolution(size: Size, tile: u32, resolutions: &[Size]) -> Result<Plan, Error> {
    let [height, width] = size;
    let best = best_resolution(size, resolutions).ok_or_else(|| Error::Shape {
        height,
        width,
        reason: "image_grid_pinpoints lists no resolution".to_owned(),
    })?;
    let [h, w] = size.map(f64::from);
    let [best_h, best_w] = best.map(f64::from);
    // As wide or as high as the resolution allows.
    let (scale_w, scale_h) = (best_w / w, best_h / h);
    let resized = if scale_w < scale_h {
        [((h * scale_w).ceil() as u32).min(best[0]), best[1]]
    } else {
        [best[0], ((w * scale_h).ceil() as u32).min(best[1])]
    };
    let padding = [0, 1].map(|side| (best[side] - resized[side]) / 2);
    let grid = best.map(|side| side.div_ceil(tile));
    let mut tiles = vec![Tile::whole([tile, tile])];
    for row in 0..grid[0] {
        for column in 0..grid[1] {
            let start = [row * tile, column * tile];
            tiles.push(Tile {
                resized: vec![resized],
                canvas: [tile, tile],
                at: [0, 1].map(|side| i64::from(padding[side]) - i64::from(start[side])),
                sampled: None,
            });
        }
    }
    Ok(Plan {
        tiles,
        grid: grid.map(|n| n as usize),
    })
}

/// The resolution that shows most of the image's pixels, and of those the one that wastes least.
fn best_resolution([height, width]: Size, resolutions: &[Size]) -> Option<Size> {
    let mut best = None;
    for &resolution in resolutions {
        let [to_h, to_w] = resolution.map(f64::from);
        let (h, w) = (f64::from(height), f64::from(width));
        let scale = (to_w / w).min(to_h / h);
        let shown =
            ((w * scale) as u64 * (h * scale) as u64).min(u64::from(height) * u64::from(width));
        let wasted = u64::from(resolution[0]) * u64::from(resolution[1]) - shown;
        let better =
            best.is_none_or(|(_, most, least)| shown > most || shown == most && wasted < least);
        if better {
            best = Some((resolution, shown, wasted));
        }
    }
    best.map(|best| best.0)
}

/// transformers' limit for any side.
const LONGEST: u32 = 4096;

fn split_plan([height, width]: Size, longest: u32, tile: u32, split: bool) -> Plan {
    let ratio = f64::from(width) / f64::from(height);
    let even = |side: f64| {
        let side = side as u32;
        side + side % 2
    };
    let [mut h, mut w] = if width >= height {
        [even(f64::from(longest) / ratio), longest]
    } else {
        [longest, even(f64::from(longest) * ratio)]
    };
    (h, w) = (h.max(1), w.max(1));
    if w >= h && w > LONGEST {
        (h, w) = (
            (f64::from(LONGEST) / (f64::from(w) / f64::from(h))) as u32,
            LONGEST,
        );
    } else if h > w && h > LONGEST {
        (h, w) = (
            LONGEST,
            (f64::from(LONGEST) * (f64::from(w) / f64::from(h))) as u32,
        );
    }
    let first = [h.max(1), w.max(1)];
    let whole = |resized: &[Size]| Tile {
        canvas: resized[resized.len() - 1],
        resized: resized.to_vec(),
        at: [0, 0],
        sampled: None,
    };
    if !split {
        return one(whole(&[first, [tile, tile]]));
    }
    // Whole tiles, the longer side first.
    let ratio = f64::from(first[1]) / f64::from(first[0]);
    let up = |side: f64| (side / f64::from(tile)).ceil() as u32 * tile;
    let second = if first[1] >= first[0] {
        let w = up(f64::from(first[1]));
        [up((f64::from(w) / ratio).floor()), w]
    } else {
        let h = up(f64::from(first[0]));
        [h, up((f64::from(h) * ratio).floor())]
    };
    let grid = second.map(|side| side / tile);
    if grid == [1, 1] {
        return one(whole(&[first, second]));
    }
    let mut tiles = Vec::new();
    for row in 0..grid[0] {
        for column in 0..grid[1] {
            tiles.push(Tile {
                resized: vec![first, second],
                canvas: [tile, tile],
                at: [-i64::from(row * tile), -i64::from(column * tile)],
                sampled: None,
            });
        }
    }
    tiles.push(whole(&[first, second, [tile, tile]]));
    Plan {
        tiles,
        grid: grid.map(|n| n as usize),
    }
}

/// Rows and columns of the arrangement of so many tiles whose shape is nearest to the image's.
fn nearest_arrangement([height, width]: Size, tile: Size, [least, most]: [u32; 2]) -> [u32; 2] {
    let mut arrangements = Vec::new();
    for columns in 1..=most {
        for rows in 1..=most / columns {
            if columns * rows >= least {
                arrangements.push((columns, rows));
            }
        }
    }
    arrangements.sort_by_key(|(columns, rows)| columns * rows);
    let shape = f64::from(width) / f64::from(height);
    let area = f64::from(width) * f64::from(height);
    let (mut best, mut nearest) = ((1, 1), f64::INFINITY);
    for (columns, rows) in arrangements {
        let difference = (shape - f64::from(columns) / f64::from(rows)).abs();
        let covered = f64::from(tile[0]) * f64::from(tile[1]) * f64::from(columns * rows);
        // Of arrangements that are as near, a larger one for a larger image.
        let order = difference.total_cmp(&nearest);
        if order.is_lt() || order.is_eq() && area > 0.5 * covered {
            (best, nearest) = ((columns, rows), difference);
        }
    }
    let (columns, rows) = best;
    [rows, columns]
}

fn canvas(size: Size, tile: Size, tiles: [u32; 2]) -> Plan {
    let [rows, columns] = nearest_arrangement(size, tile, tiles);
    let resized = [tile[0] * rows, tile[1] * columns];
    let mut made = Vec::new();
    for row in 0..rows {
        for column in 0..columns {
            made.push(Tile {
                resized: vec![resized],
                canvas: tile,
                at: [-i64::from(row * tile[0]), -i64::from(column * tile[1])],
                sampled: None,
            });
        }
    }
    if made.len() > 1 {
        made.push(Tile::whole(tile));
    }
    Plan {
        tiles: made,
        grid: [rows as usize, columns as usize],
    }
}

/// Rows and columns of the arrangement of at most so many tiles that an image is least enlarged in, or least shrunk.
fn smallest_arrangement(size: Size, tile: u32, most: u32) -> [u32; 2] {
    let [height, width] = size.map(f64::from);
    let arrangements =
        (1..=most).flat_map(|rows| (1..=most / rows).map(move |columns| [rows, columns]));
    let scale = |[rows, columns]: [u32; 2]| {
        (f64::from(rows * tile) / height).min(f64::from(columns * tile) / width)
    };
    let order = |&a: &[u32; 2], &b: &[u32; 2]| {
        let (a_scale, b_scale) = (scale(a), scale(b));
        let by_scale = match (a_scale >= 1.0, b_scale >= 1.0) {
            (true, true) => a_scale.total_cmp(&b_scale),
            (false, false) => b_scale.total_cmp(&a_scale),
            (a_grows, b_grows) => b_grows.cmp(&a_grows),
        };
        by_scale.then((a[0] * a[1]).cmp(&(b[0] * b[1])))
    };
    arrangements.min_by(order).unwrap_or([1, 1])
}

fn fitted(size: Size, tile: u32, most: u32) -> Plan {
    let grid = smallest_arrangement(size, tile, most);
    // No side is enlarged past a tile.
    let target = [0, 1].map(|side| size[side].clamp(tile, grid[side] * tile));
    let [scale_h, scale_w] = [0, 1].map(|side| f64::from(target[side]) / f64::from(size[side]));
    let scaled =
        |side: usize, scale: f64| ((f64::from(size[side]) * scale) as u32).clamp(1, target[side]);
    let resized = if scale_w < scale_h {
        [scaled(0, scale_w), target[1]]
    } else {
        [target[0], scaled(1, scale_h)]
    };
    let mut tiles = Vec::new();
    for row in 0..grid[0] {
        for column in 0..grid[1] {
            tiles.push(Tile {
                resized: vec![resized],
                canvas: [tile, tile],
                at: [-i64::from(row * tile), -i64::from(column * tile)],
                sampled: None,
            });
        }
    }
    Plan {
        tiles,
        grid: grid.map(|n| n as usize),
    }
}

/// What Phi-4's processor shrinks no side of an image below.
const NARROWEST: u32 = 10;

fn covered(size: Size, tile: u32, most: u32) -> Result<Plan, Error> {
    let covering = size.map(|side| side.div_ceil(tile));
    let grid = if u64::from(covering[0]) * u64::from(covering[1]) <= u64::from(most) {
        covering
    } else {
        nearest_arrangement(size, [tile; 2], [1, most])
    };
    let canvas = grid.map(|count| count * tile);
    let [scale_h, scale_w] = [0, 1].map(|side| f64::from(canvas[side]) / f64::from(size[side]));
    let scaled =
        |side: usize, scale: f64| ((f64::from(size[side]) * scale) as u32).min(canvas[side]);
    let resized = if scale_w < scale_h {
        [scaled(0, scale_w), canvas[1]]
    } else {
        [canvas[0], scaled(1, scale_h)]
    };
    if resized.iter().any(|&side| side < NARROWEST) {
        return Err(Error::Shape {
            height: size[0],
            width: size[1],
            reason: format!(
                "{} by {} pixels are left of it in {} by {}, no side may have less than {NARROWEST}",
                resized[1], resized[0], canvas[1], canvas[0]
            ),
        });
    }
    let part = |at, canvas, sampled| Tile {
        resized: vec![resized],
        canvas,
        at,
        sampled,
    };
    let mut tiles = vec![part([0, 0], canvas, Some([tile; 2]))];
    for row in 0..grid[0] {
        for column in 0..grid[1] {
            let at = [row, column].map(|place| -i64::from(place * tile));
            tiles.push(part(at, [tile; 2], None));
        }
    }
    Ok(Plan {
        tiles,
        grid: grid.map(|n| n as usize),
    })
}

/// Sides that are multiples of `side`, the shape almost kept, the area at most `most` squares of it.
fn within_budget(size: Size, side: u32, most: u32) -> Result<Size, Error> {
    let [height, width] = size;
    let (area, whole) = (f64::from(height) * f64::from(width), f64::from(side));
    let scale = (f64::from(most) * whole * whole / area).sqrt();
    let [rows, columns] = size.map(|length| (scale * f64::from(length) / whole).floor() as u32);
    let [rows, columns] = match (rows, columns) {
        (0, 0) => {
            return Err(Error::Shape {
                height,
                width,
                reason: format!("no square of {side} pixels is left of it"),
            });
        }
        (0, _) => [1, (width / height).min(most)],
        (_, 0) => [(height / width).min(most), 1],
        whole => whole.into(),
    };
    Ok([rows * side, columns * side])
}
