//! Images as a model's tower reads them, as transformers' processors prepare them: decoded, resized, cut into tiles or patches,
//! normalized; and the text that stands for one in a prompt.
//!
//! Knows no tensor and no weights: a model directory's `preprocessor_config.json`, `processor_config.json` and `config.json`
//! say what is done, numbers come out. What differs between processors is one of a few rules (`cut`) and a form of text
//! (`prompt`).

mod cut;
mod prompt;
mod resize;
mod settings;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use serde_json::Value;

use cut::{Plan, Rule, Size};
use prompt::Prompt;
pub use prompt::Written;
use settings::{File, Settings};

/// What prepares a model's images.
#[derive(Debug, Clone)]
pub struct Processor {
    settings: Settings,
    prompt: Prompt,
}

/// An image in numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    pub values: Vec<f32>,
    /// `[patches, channels * frames * side^2]`, squares of patches after each other, or `[tiles, channels, height, width]`.
    pub shape: Vec<usize>,
    /// Rows and columns of patches, or of the tiles that are parts of the image.
    pub grid: [usize; 2],
    /// Height and width of the image itself; of a canvas that covers it (`Rule::Covered`), of the rows and columns of patches
    /// from its corner that are not padding alone.
    pub size: [usize; 2],
}

/// What can be wrong with an image or a processor's settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The directory has none of the files.
    #[error(
        "{}: no preprocessor_config.json, and no image_processor in a processor_config.json; copy it from the original model, \
         or calibrate with text: --calib-data FILE.txt",
        .0.display()
    )]
    Missing(PathBuf),
    #[error("{}: {reason}", path.display())]
    Setting { path: PathBuf, reason: String },
    #[error("how model_type \"{model_type}\" writes images into a prompt is not known")]
    Family { model_type: String },
    /// An image that cannot be decoded.
    #[error("no PNG, JPEG or WebP image: {0}")]
    Decode(#[from] image::ImageError),
    #[error("an image of {width} by {height} pixels: {reason}")]
    Shape {
        height: u32,
        width: u32,
        reason: String,
    },
}

impl Processor {
    /// Reads the settings of the model in `directory`, whose config.json is `config`.
    ///
    /// # Errors
    /// Missing files; settings of another kind than those that are known, by file and key.
    pub fn open(directory: &Path, config: &Value) -> Result<Self, Error> {
        let processor = File::read(&directory.join("processor_config.json"))?;
        let own = File::read(&directory.join("preprocessor_config.json"))?;
        let nested = processor.as_ref().and_then(|file| {
            let json = file
                .json
                .get("image_processor")
                .filter(|json| json.is_object())?;
            Some(File {
                path: file.path.clone(),
                json: json.clone(),
            })
        });
        // In this order, as transformers reads them.
        let file = nested
            .or(own)
            .ok_or_else(|| Error::Missing(directory.to_owned()))?;
        let processor = processor.map_or(Value::Null, |file| file.json);
        let tokenizer = File::read(&directory.join("tokenizer_config.json"))?;
        let tokenizer = tokenizer.map_or(Value::Null, |file| file.json);
        let settings = Settings::new(&file, &processor)?;
        let files = prompt::Files {
            config,
            processor: &processor,
            image_processor: &file.json,
            tokenizer: &tokenizer,
        };
        Ok(Self {
            prompt: Prompt::new(&files, &settings.rule)?,
            settings,
        })
    }

    /// What the chat template writes for an image.
    pub fn placeholder(&self) -> &str {
        &self.prompt.placeholder
    }

    /// The token that stands for each feature of an image.
    pub fn image_token(&self) -> &str {
        &self.prompt.token
    }

    /// What stands in a prompt for an image of this size.
    ///
    /// # Errors
    /// [`Error::Shape`] where the processor takes no such image.
    pub fn prompt(&self, width: u32, height: u32) -> Result<Written, Error> {
        let (size, rule) = ([height, width], &self.settings.rule);
        let plan = rule.plan(size)?;
        Ok(self.prompt.write(rule.kept(size, &plan), &plan))
    }

    /// The shape of [`Processor::pixels`] for an image of this size.
    ///
    /// # Errors
    /// [`Error::Shape`] where the processor takes no such image.
    pub fn shape(&self, width: u32, height: u32) -> Result<Vec<usize>, Error> {
        Ok(self.shape_of(&self.settings.rule.plan([height, width])?))
    }

    fn shape_of(&self, plan: &Plan) -> Vec<usize> {
        let patches = |patch: u32, frames: u32| {
            let [patch, frames] = [patch, frames].map(|side| side as usize);
            vec![plan.grid[0] * plan.grid[1], 3 * frames * patch * patch]
        };
        match self.settings.rule {
            Rule::Patches { patch, frames, .. } => patches(patch, frames),
            Rule::Budget { patch, .. } => patches(patch, 1),
            _ => {
                let [height, width] = plan.tiles[0].size().map(|side| side as usize);
                vec![plan.tiles.len(), 3, height, width]
            }
        }
    }

    /// The image as the tower reads it.
    ///
    /// # Errors
    /// [`Error::Shape`] where the processor takes no such image.
    pub fn pixels(&self, image: &RgbImage) -> Result<Pixels, Error> {
        let size = [image.height(), image.width()];
        let plan = self.settings.rule.plan(size)?;
        let tiles = self.tiles(image, &plan);
        let canvas = plan.tiles[0].canvas;
        let values = match self.settings.rule {
            Rule::Patches {
                patch,
                square,
                frames,
                ..
            } => patches(&tiles, canvas, [patch, square, frames]),
            Rule::Budget { patch, .. } => {
                let mut values = patches(&tiles, canvas, [patch, 1, 1]);
                channels_last(&mut values, (patch * patch) as usize);
                values
            }
            _ => tiles,
        };
        Ok(Pixels {
            values,
            shape: self.shape_of(&plan),
            grid: plan.grid,
            size: (self.settings.rule.kept(size, &plan)).map(|side| side as usize),
        })
    }

    /// All tiles, `[tiles, channels, height, width]`.
    fn tiles(&self, image: &RgbImage, plan: &Plan) -> Vec<f32> {
        let mut values = Vec::new();
        let mut made: Vec<(Vec<Size>, RgbImage)> = Vec::new();
        for tile in &plan.tiles {
            // The longest part of the way that an image has gone already.
            for steps in 1..=tile.resized.len() {
                let way = &tile.resized[..steps];
                if made.iter().any(|made| made.0 == way) {
                    continue;
                }
                let before = made.iter().find(|made| made.0 == way[..steps - 1]);
                let before = before.map_or(image, |made| &made.1);
                let [height, width] = way[steps - 1];
                let resized = resize::resize(before, width, height, self.settings.filter);
                made.push((way.to_vec(), resized));
            }
            let resized = made.iter().find(|made| made.0 == tile.resized);
            let (_, resized) = resized.expect("it was made above");
            for channel in 0..3 {
                let (mean, deviation) = (
                    self.settings.mean[channel],
                    self.settings.deviation[channel],
                );
                let value = |row: i64, column: i64| {
                    let (y, x) = (row - tile.at[0], column - tile.at[1]);
                    let is_inside = (0..i64::from(resized.height())).contains(&y)
                        && (0..i64::from(resized.width())).contains(&x);
                    let value = if is_inside {
                        resized.get_pixel(x as u32, y as u32).0[channel]
                    } else {
                        self.settings.padding
                    };
                    (f32::from(value) - mean) / deviation
                };
                if let Some(size) = tile.sampled {
                    values.extend(resize::sample(tile.canvas, size, value));
                    continue;
                }
                for row in 0..i64::from(tile.canvas[0]) {
                    values.extend((0..i64::from(tile.canvas[1])).map(|column| value(row, column)));
                }
            }
        }
        values
    }
}

/// Patches of `[channels, height, width]`, squares of them after each other, each repeated for all frames.
fn patches(values: &[f32], [height, width]: Size, sides: [u32; 3]) -> Vec<f32> {
    let [patch, square, frames] = sides.map(|side| side as usize);
    let [height, width] = [height, width].map(|side| side as usize);
    let (rows, columns) = (height / patch, width / patch);
    let mut made = Vec::with_capacity(values.len() * frames);
    for row in (0..rows).step_by(square) {
        for column in (0..columns).step_by(square) {
            for inner in 0..square * square {
                let (row, column) = (row + inner / square, column + inner % square);
                for channel in 0..3 {
                    let plane = &values[channel * height * width..][..height * width];
                    for _ in 0..frames {
                        for line in 0..patch {
                            let start = (row * patch + line) * width + column * patch;
                            made.extend_from_slice(&plane[start..start + patch]);
                        }
                    }
                }
            }
        }
    }
    made
}

/// Patches of three channels of `area` values each, as values of three channels each.
fn channels_last(patches: &mut [f32], area: usize) {
    let mut made = Vec::with_capacity(3 * area);
    for patch in patches.chunks_exact_mut(3 * area) {
        made.clear();
        made.extend((0..3 * area).map(|at| patch[at % 3 * area + at / 3]));
        patch.copy_from_slice(&made);
    }
}

/// The image in the bytes of a PNG, JPEG or WebP file, turned as its EXIF orientation says, transparent parts on white.
///
/// # Errors
/// [`Error::Decode`]
pub fn decode(bytes: &[u8]) -> Result<RgbImage, Error> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let reader = reader.map_err(image::ImageError::IoError)?;
    let mut decoder = reader.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    if !image.color().has_alpha() {
        return Ok(image.into_rgb8());
    }
    let image = image.into_rgba8();
    let (width, height) = image.dimensions();
    let on_white = |pixel: &image::Rgba<u8>| {
        let [red, green, blue, alpha] = pixel.0.map(u32::from);
        let mixed = |value: u32| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        [mixed(red), mixed(green), mixed(blue)]
    };
    let raw = image.pixels().flat_map(on_white).collect();
    Ok(RgbImage::from_raw(width, height, raw).expect("a value for each pixel"))
}

#[cfg(test)]
mod tests;
