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
    "Glm4vImageProcessor",
    "GotOcr2ImageProcessor",
    "Idefics3ImageProcessor",
    "LlavaNextImageProcessor",
    "LlavaOnevisionImageProcessor",
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
            | "SiglipImageProcessor"
            | "SmolVLMImageProcessor" => (HALF, HALF),
            _ => (CLIP_MEAN, CLIP_STD),
        };
        let filter = match *kind {
            "Gemma3ImageProcessor" => Filter::Bilinear,
            "Idefics3ImageProcessor" | "SmolVLMImageProcessor" => Filter::Lanczos,
            _ => Filter::Bicubic,
        };
        let filter = match file.json.get("resample").filter(|value| !value.is_null()) {
            None => filter,
            Some(number) => (number.as_u64().and_then(Filter::from_number)).ok_or_else(|| {
                file.error("resample", "1 (Lanczos), 2 (bilinear) or 3 (bicubic)")
            })?,
        };
        for (key, needed) in [
            ("do_resize", true),
            ("do_rescale", true),
            ("do_pan_and_scan", false),
        ] {
            if file.json[key]
                .as_bool()
                .is_some_and(|given| given != needed)
            {
                return Err(file.error(key, &needed.to_string()));
            }
        }
        let factor = file.json["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0);
        let scaled = |key, absent: [f64; 3]| -> Result<[f32; 3], Error> {
            let numbers = file.triple(key)?.unwrap_or(absent);
            Ok(numbers.map(|number| (number / factor) as f32))
        };
        let (mean, deviation) = if file.json["do_normalize"] == false {
            ([0.0; 3], [(1.0 / factor) as f32; 3])
        } else {
            (scaled("image_mean", mean)?, scaled("image_std", deviation)?)
        };
        Ok(Self {
            rule: rule(file, kind, processor)?,
            filter,
            mean,
            deviation,
        })
    }
}

fn rule(file: &File, kind: &str, processor: &Value) -> Result<Rule, Error> {
    let size = &file.json["size"];
    Ok(match kind {
        "Qwen2VLImageProcessor" | "Qwen3VLImageProcessor" | "Glm4vImageProcessor" => {
            let is_glm = kind == "Glm4vImageProcessor";
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
            let own = (square(&file.json["crop_size"])
                .filter(|_| file.json["do_center_crop"] != false))
            .or_else(|| square(size))
            .unwrap_or(if kind == "LlavaNextImageProcessor" {
                [224; 2]
            } else {
                [384; 2]
            });
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
        "Idefics3ImageProcessor" | "SmolVLMImageProcessor" => {
            let edge = |value: &Value| whole(value.get("longest_edge")?);
            Rule::Split {
                longest: edge(size).unwrap_or(4 * 364),
                tile: edge(&file.json["max_image_size"]).unwrap_or(364),
                split: file.json["do_image_splitting"] != false,
            }
        }
        "GotOcr2ImageProcessor" => Rule::Canvas {
            tile: square(size).unwrap_or([384; 2]),
            tiles: if file.json["crop_to_patches"] == true {
                Some([
                    file.count("min_patches", 1)?,
                    file.count("max_patches", 12)?,
                ])
            } else {
                None
            },
        },
        "PixtralImageProcessor" => {
            let patch = (whole(&processor["patch_size"]))
                .or_else(|| square(&file.json["patch_size"]).map(|size| size[0]))
                .unwrap_or(16);
            let merge = whole(&processor["spatial_merge_size"]).unwrap_or(1);
            let longest = size
                .get("longest_edge")
                .and_then(whole)
                .map(|edge| [edge; 2]);
            Rule::Longest {
                longest: longest.or_else(|| square(size)).unwrap_or([1024; 2]),
                patch: patch * merge,
            }
        }
        _ => {
            let resized = match (size.get("shortest_edge").and_then(whole), square(size)) {
                (Some(edge), _) => Resized::ShortestEdge(edge),
                (None, Some(size)) => Resized::Exactly(size),
                (None, None) if kind == "CLIPImageProcessor" => Resized::ShortestEdge(224),
                (None, None) => Resized::Exactly([224; 2]),
            };
            let is_cut = match file.json["do_center_crop"].as_bool() {
                Some(cut) => cut,
                None => kind == "CLIPImageProcessor",
            };
            Rule::Whole {
                resized,
                cropped: is_cut.then(|| square(&file.json["crop_size"]).unwrap_or([224; 2])),
            }
        }
    })
}

fn whole(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok().filter(|&number| number > 0)
}

/// Height and width, or one number for both.
fn square(value: &Value) -> Option<Size> {
    if let Some(side) = whole(value).or_else(|| whole(value.get("shortest_edge")?)) {
        return Some([side; 2]);
    }
    Some([whole(value.get("height")?)?, whole(value.get("width")?)?])
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
            Some(value) => whole(value).ok_or_else(|| self.error(key, "a number above 0")),
        }
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
