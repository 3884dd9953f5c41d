//! preprocessor_config.json: which rule cuts an image, and how its pixels become numbers.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Error;
use super::cut::{Resized, Rule, Size};
use super::resize::Filter;

/// What a processor does with an image.
#[derive(Debug, Clone)]
pub struct Settings {
    pub rule: Rule,
    pub filter: Filter,
    /// By channel: what is subtracted from a value of 0 to 255, and what the rest is divided by.
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
    /// The value of 0 to 255 that an image is padded with.
    pub padding: u8,
}

/// The file's objects and where errors say that they are.
pub struct File {
    pub path: PathBuf,
    pub json: Value,
}

const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
const HALF: [f64; 3] = [0.5; 3];

/// The classes that are known, without what transformers appends to their names.
const KINDS: &[&str] = &[
    "CLIPImageProcessor",
    "Gemma3ImageProcessor",
    "Gemma4ImageProcessor",
    "Glm46VImageProcessor",
    "Glm4vImageProcessor",
    "GotOcr2ImageProcessor",
    "Idefics3ImageProcessor",
    "LlavaNextImageProcessor",
    "LlavaOnevisionImageProcessor",
    "MllamaImageProcessor",
    "Phi4MultimodalImageProcessor",
    "PixtralImageProcessor",
    "Qwen2VLImageProcessor",
    "Qwen3VLImageProcessor",
    "SiglipImageProcessor",
    "SmolVLMImageProcessor",
];

impl Settings {
    /// `processor` are the settings of the text around images, of another file.
    pub fn new(file: &File, processor: &Value) -> Result<Self, Error> {
        let keys = ["image_processor_type", "feature_extractor_type"];
        let named = keys.iter().find_map(|key| file.json[key].as_str());
        let named = named.unwrap_or_default();
        let bare = named.trim_end_matches("Fast");
        let bare = bare.replace("FeatureExtractor", "ImageProcessor");
        let Some(kind) = KINDS.iter().find(|kind| **kind == bare) else {
            return Err(file.error(
                "image_processor_type",
                &format!("one of {}", KINDS.join(", ")),
            ));
        };
        let (mean, deviation) = match *kind {
            "Gemma3ImageProcessor"
            | "Idefics3ImageProcessor"
            | "MllamaImageProcessor"
            | "Phi4MultimodalImageProcessor"
            | "SiglipImageProcessor"
            | "SmolVLMImageProcessor" => (HALF, HALF),
            _ => (CLIP_MEAN, CLIP_STD),
        };
        let filter = match *kind {
            "Gemma3ImageProcessor" | "MllamaImageProcessor" => Filter::Bilinear,
            "Idefics3ImageProcessor" | "SmolVLMImageProcessor" => Filter::Lanczos,
            _ => Filter::Bicubic,
        };
        let filter = match file.json.get("resample").filter(|value| !value.is_null()) {
            None => filter,
            Some(number) => (number.as_u64().and_then(Filter::from_number)).ok_or_else(|| {
                file.error("resample", "1 (Lanczos), 2 (bilinear) or 3 (bicubic)")
            })?,
        };
        // Phi-4's filter is the one of the whole canvas; its image comes there as libtorch does it by itself.
        let is_phi = *kind == "Phi4MultimodalImageProcessor";
        let filter = match filter {
            Filter::Bicubic if is_phi => Filter::Bilinear,
            _ if is_phi => return Err(file.error("resample", "3 (bicubic)")),
            filter => filter,
        };
        // Gemma 3's processor keeps `do_pan_and_scan` off, whatever this file says.
        for key in ["do_resize", "do_rescale"] {
            if file.json[key] == false {
                return Err(file.error(key, "true"));
            }
        }
        let factor = file.json["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0);
        let scaled = |key, absent: [f64; 3]| -> Result<[f32; 3], Error> {
            let numbers = file.triple(key)?.unwrap_or(absent);
            Ok(numbers.map(|number| (number / factor) as f32))
        };
        let is_normalized = file.json["do_normalize"].as_bool();
        let is_normalized = is_normalized.unwrap_or(*kind != "Gemma4ImageProcessor");
        let (mean, deviation) = if is_normalized {
            (scaled("image_mean", mean)?, scaled("image_std", deviation)?)
        } else {
            ([0.0; 3], [(1.0 / factor) as f32; 3])
        };
        Ok(Self {
            rule: rule(file, kind, processor)?,
            filter,
            mean,
            deviation,
            padding: if is_phi { 255 } else { 0 },
        })
    }
}

fn rule(file: &File, kind: &str, processor: &Value) -> Result<Rule, Error> {
    let size = &file.json["size"];
    // Two kinds have areas there.
    let is_area = kind.starts_with("Qwen") || kind.starts_with("Glm");
    let sides = if is_area {
        Sides::default()
    } else {
        file.sides("size")?
    };
    Ok(match kind {
        "Qwen2VLImageProcessor"
        | "Qwen3VLImageProcessor"
        | "Glm4vImageProcessor"
        | "Glm46VImageProcessor" => {
            let is_glm = kind.starts_with("Glm");
            let bounds: [(&str, &str, u32); 2] = if is_glm {
                [
                    ("shortest_edge", "", 112 * 112),
                    ("longest_edge", "", 28 * 28 * 15000),
                ]
            } else {
                [
                    ("shortest_edge", "min_pixels", 56 * 56),
                    ("longest_edge", "max_pixels", 28 * 28 * 1280),
                ]
            };
            let bound = |(key, old, absent): (&str, &str, u32)| -> Result<f64, Error> {
                // The old key wins, as transformers reads it.
                let found = [file.json.get(old), size.get(old), size.get(key)];
                let found = found.into_iter().flatten().find(|value| !value.is_null());
                match found {
                    None => Ok(f64::from(absent)),
                    Some(value) => (value.as_f64().filter(|&pixels| pixels > 0.0))
                        .ok_or_else(|| file.error(key, "a number above 0")),
                }
            };
            Rule::Patches {
                patch: file.count("patch_size", 14)?,
                square: file.count("merge_size", 2)?,
                frames: file.count("temporal_patch_size", 2)?,
                area: [bound(bounds[0])?, bound(bounds[1])?],
                counts_frames: is_glm,
            }
        }
        "LlavaNextImageProcessor" | "LlavaOnevisionImageProcessor" => {
            let is_cut = file.json["do_center_crop"] != false;
            let cut = file.sides("crop_size")?.both().filter(|_| is_cut);
            let absent = if kind == "LlavaNextImageProcessor" {
                224
            } else {
                384
            };
            let own = cut.or_else(|| sides.any()).unwrap_or([absent; 2]);
            let pinpoints = file.json["image_grid_pinpoints"].as_array();
            let pinpoints = pinpoints.map(|list| list.iter().map(pair).collect::<Option<Vec<_>>>());
            let resolutions = pinpoints.flatten().ok_or_else(|| {
                file.error("image_grid_pinpoints", "a list of heights and widths")
            })?;
            Rule::AnyResolution {
                tile: own[0],
                resolutions,
            }
        }
        "Idefics3ImageProcessor" | "SmolVLMImageProcessor" => Rule::Split {
            longest: sides.longest.unwrap_or(4 * 364),
            tile: file.sides("max_image_size")?.longest.unwrap_or(364),
            split: file.json["do_image_splitting"] != false,
        },
        "GotOcr2ImageProcessor" => Rule::Canvas {
            tile: sides.both().unwrap_or([384; 2]),
            // InternVL's processor asks for tiles, whatever `crop_to_patches` is in this file.
            tiles: [
                file.count("min_patches", 1)?,
                file.count("max_patches", 12)?,
            ],
        },
        "MllamaImageProcessor" => Rule::Fitted {
            tile: match sides.both().unwrap_or([224; 2]) {
                [height, width] if height == width => height,
                _ => return Err(file.error("size", "as high as wide")),
            },
            most: file.count("max_image_tiles", 4)?,
        },
        "Phi4MultimodalImageProcessor" => {
            let tile = match sides.both().unwrap_or([448; 2]) {
                [height, width] if height == width => height,
                _ => return Err(file.error("size", "as high as wide")),
            };
            let patch = file.count("patch_size", 14)?;
            if tile % patch != 0 {
                return Err(file.error("patch_size", &format!("a divisor of the size, {tile}")));
            }
            Rule::Covered {
                tile,
                patch,
                most: file.count("dynamic_hd", 36)?,
            }
        }
        "Gemma4ImageProcessor" => Rule::Budget {
            patch: file.count("patch_size", 16)?,
            square: file.count("pooling_kernel_size", 3)?,
            most: file.count("max_soft_tokens", 280)?,
        },
        "PixtralImageProcessor" => {
            let own = file.sides("patch_size")?.both().map(|size| size[0]);
            let patch = whole(&processor["patch_size"]).or(own).unwrap_or(16);
            let merge = whole(&processor["spatial_merge_size"]).unwrap_or(1);
            let longest = sides.longest.map(|edge| [edge; 2]);
            Rule::Longest {
                longest: longest.or(sides.both()).unwrap_or([1024; 2]),
                patch: patch * merge,
            }
        }
        _ => {
            let is_clip = kind == "CLIPImageProcessor";
            // One number is the shorter edge, but for Gemma 3, where it is both sides.
            let number = sides.number.filter(|_| kind != "Gemma3ImageProcessor");
            let resized = match (sides.shortest.or(number), sides.both()) {
                (Some(edge), _) => Resized::ShortestEdge(edge),
                (None, Some(size)) => Resized::Exactly(size),
                (None, None) if is_clip => Resized::ShortestEdge(224),
                (None, None) => Resized::Exactly([224; 2]),
            };
            let is_cut = file.json["do_center_crop"].as_bool().unwrap_or(is_clip);
            let cut = file.sides("crop_size")?.any().unwrap_or([224; 2]);
            Rule::Whole {
                resized,
                cropped: is_cut.then_some(cut),
            }
        }
    })
}

/// What a key says of an image's sides.
#[derive(Default)]
struct Sides {
    /// A number alone.
    number: Option<u32>,
    /// Height and width.
    exact: Option<Size>,
    shortest: Option<u32>,
    longest: Option<u32>,
}

impl Sides {
    /// Height and width; a number is both.
    fn both(&self) -> Option<Size> {
        self.exact.or(self.number.map(|side| [side; 2]))
    }

    /// The same, or the shorter edge as both.
    fn any(&self) -> Option<Size> {
        self.both().or(self.shortest.map(|side| [side; 2]))
    }
}

/// No patch, tile or count of them is larger; what is computed of a few of them stays far within 64 bits.
const LARGEST: u64 = 1 << 14;
const COUNT: &str = "a number from 1 to 16384";
const SIDES: &str =
    "a number from 1 to 16384, or height and width, shortest_edge or longest_edge as such";

fn whole(value: &Value) -> Option<u32> {
    let number = value
        .as_u64()
        .filter(|number| (1..=LARGEST).contains(number));
    number.map(|number| number as u32)
}

fn pair(value: &Value) -> Option<Size> {
    match value.as_array()?.as_slice() {
        [height, width] => Some([whole(height)?, whole(width)?]),
        _ => None,
    }
}

impl File {
    /// The JSON object in `path`, or null where there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = path.to_owned();
                return Err(Error::Io { path, source });
            }
        };
        let json: Value = serde_json::from_str(&text).map_err(|error| Error::Setting {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let path = path.to_owned();
        Ok(Some(Self { path, json }))
    }

    pub fn error(&self, key: &str, expected: &str) -> Error {
        let found = self
            .json
            .get(key)
            .map_or("absent".to_owned(), Value::to_string);
        Error::Setting {
            path: self.path.clone(),
            reason: format!("{key} is {found}, expected {expected}"),
        }
    }

    fn count(&self, key: &str, absent: u32) -> Result<u32, Error> {
        match self.json.get(key).filter(|value| !value.is_null()) {
            None => Ok(absent),
            Some(value) => whole(value).ok_or_else(|| self.error(key, COUNT)),
        }
    }

    fn sides(&self, key: &str) -> Result<Sides, Error> {
        let value = &self.json[key];
        if value.is_null() {
            return Ok(Sides::default());
        }
        if !value.is_object() {
            let number = Some(whole(value).ok_or_else(|| self.error(key, SIDES))?);
            return Ok(Sides {
                number,
                ..Sides::default()
            });
        }
        let side = |name: &str| match value.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => whole(value).map(Some).ok_or_else(|| self.error(key, SIDES)),
        };
        let sides = Sides {
            number: None,
            exact: side("height")?.zip(side("width")?).map(Size::from),
            shortest: side("shortest_edge")?,
            longest: side("longest_edge")?,
        };
        if sides
            .any()
            .or(sides.longest.map(|edge| [edge; 2]))
            .is_none()
        {
            return Err(self.error(key, SIDES));
        }
        Ok(sides)
    }

    fn triple(&self, key: &str) -> Result<Option<[f64; 3]>, Error> {
        let Some(value) = self.json.get(key).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let list = value
            .as_array()
            .map(|list| list.iter().map(Value::as_f64).collect());
        let numbers: Option<Vec<f64>> = list.unwrap_or_default();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers
            .map(Some)
            .ok_or_else(|| self.error(key, "three numbers"))
    }
}
