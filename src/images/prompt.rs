//! What a processor writes into a prompt for an image.

use serde_json::Value;

use super::Error;
use super::cut::{Plan, Rule, Size};

/// The texts of a family's processor.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// What the chat template writes for an image.
    pub placeholder: String,
    /// The token that stands for a feature.
    pub token: String,
    form: Form,
}

#[derive(Debug, Clone)]
enum Form {
    /// One token for each square of patches.
    Squares { square: usize },
    /// As many tokens as a tile has patches, and so many more or less.
    Patches { patch: u32, more: i64 },
    /// The same for the whole image, and the tiles as one image without its padding, a token more for each row.
    Unpadded {
        patch: u32,
        more: i64,
        most: Option<u32>,
    },
    /// One token for each square of two by two patches of the tiles as one image without its padding, a token more for each row;
    /// one; and the same of the whole. A tile has so many patches in a row; its last square may be half outside.
    Halved { patch: u32, side: u32 },
    /// One token, whose embedding stays: layers of their own attend to the features.
    Mark,
    /// So many tokens for each tile, between two others; without a count, one for each square of patches.
    Around {
        count: Option<usize>,
        square: usize,
        before: String,
        after: String,
    },
    /// So many tokens for each tile, with the tile's place before them.
    Places { count: usize },
    /// A row of tokens after the other.
    Rows,
}

/// Text and features of an image.
pub struct Written {
    pub text: String,
    pub n_tokens: usize,
}

/// What the files of a model's directory hold, null where there is none.
pub struct Files<'a> {
    /// config.json
    pub config: &'a Value,
    /// processor_config.json
    pub processor: &'a Value,
    /// preprocessor_config.json, or what stands in its place
    pub image_processor: &'a Value,
    /// tokenizer_config.json
    pub tokenizer: &'a Value,
}

impl Files<'_> {
    /// The token that the tokenizer says images have.
    fn image_token(&self) -> Option<&str> {
        let tokenizer = self.tokenizer;
        let more = ["extra_special_tokens", "model_specific_special_tokens"];
        let places = [tokenizer]
            .into_iter()
            .chain(more.map(|key| &tokenizer[key]));
        let mut tokens = places.map(|place| &place["image_token"]);
        tokens.find_map(|token| token.as_str().or_else(|| token["content"].as_str()))
    }

    /// What the tokenizer calls the token of the model's placeholder, `absent` where the model does not say which that is.
    fn placeholder(&self, absent: u64) -> Option<&str> {
        let id = self.config["vision_config"]["image_token_id"].as_u64();
        let id = id.unwrap_or(absent).to_string();
        self.tokenizer["added_tokens_decoder"][&id]["content"].as_str()
    }
}

impl Prompt {
    /// By the files of the model's directory.
    pub fn new(files: &Files<'_>, rule: &Rule) -> Result<Self, Error> {
        let Files {
            config,
            processor,
            image_processor,
            ..
        } = *files;
        let model_type = config["model_type"].as_str().unwrap_or_default();
        let token = |absent: &str| {
            processor["image_token"]
                .as_str()
                .unwrap_or(absent)
                .to_owned()
        };
        let number = |key: &str| processor[key].as_u64().map(|number| number as usize);
        let patch = (processor["patch_size"].as_u64())
            .or_else(|| config["vision_config"]["patch_size"].as_u64())
            .unwrap_or(14) as u32;
        let strategy = (processor["vision_feature_select_strategy"].as_str())
            .or_else(|| config["vision_feature_select_strategy"].as_str());
        let has_class = config["vision_config"]["model_type"].as_str() == Some("clip_vision_model");
        let added = processor["num_additional_image_tokens"].as_i64();
        let more =
            added.unwrap_or_else(|| i64::from(has_class)) - i64::from(strategy == Some("default"));
        let (placeholder, token, form) = match (model_type, rule) {
            ("gemma3", _) => {
                let (around, token) = ("<start_of_image>", "<image_soft_token>");
                let count = number("image_seq_length").or_else(|| number("mm_tokens_per_image"));
                let own = config["mm_tokens_per_image"].as_u64().unwrap_or(256) as usize;
                let form = Form::Around {
                    count: Some(count.unwrap_or(own)),
                    square: 1,
                    before: format!("\n\n{around}"),
                    after: "<end_of_image>\n\n".to_owned(),
                };
                (around, token.to_owned(), form)
            }
            ("internvl", _) => (
                "<IMG_CONTEXT>",
                "<IMG_CONTEXT>".to_owned(),
                Form::Around {
                    count: Some(number("image_seq_length").unwrap_or(256)),
                    square: 1,
                    before: "<img>".to_owned(),
                    after: "</img>".to_owned(),
                },
            ),
            ("paligemma", Rule::Whole { .. }) => {
                let count = image_processor["image_seq_length"].as_u64();
                let form = Form::Around {
                    count: Some(count.unwrap_or(256) as usize),
                    square: 1,
                    before: String::new(),
                    after: String::new(),
                };
                ("<image>", token("<image>"), form)
            }
            (_, Rule::Budget { square, .. }) => {
                let form = Form::Around {
                    count: None,
                    square: *square as usize,
                    before: "<|image>".to_owned(),
                    after: "<image|>".to_owned(),
                };
                ("<|image|>", "<|image|>".to_owned(), form)
            }
            // Its processor knows the token alone, and templates write it.
            ("phi4_multimodal", Rule::Covered { tile, patch, .. }) => {
                let named = files.placeholder(200_010).unwrap_or("<|endoftext10|>");
                let own = files.image_token().map(str::to_owned);
                let token = own.unwrap_or_else(|| token(named));
                let form = Form::Halved {
                    patch: *patch,
                    side: tile / patch,
                };
                return Ok(Self {
                    placeholder: token.clone(),
                    token,
                    form,
                });
            }
            (_, Rule::Fitted { .. }) => ("<|image|>", "<|image|>".to_owned(), Form::Mark),
            ("idefics3" | "smolvlm", _) => {
                let count = number("image_seq_len").unwrap_or(169);
                ("<image>", token("<image>"), Form::Places { count })
            }
            (_, Rule::Longest { .. }) => ("[IMG]", token("[IMG]"), Form::Rows),
            (_, Rule::Patches { square, .. }) => {
                let square = *square as usize;
                let is_glm = model_type.starts_with("glm4v");
                let token = if is_glm { "<|image|>" } else { "<|image_pad|>" };
                (token, token.to_owned(), Form::Squares { square })
            }
            (_, Rule::AnyResolution { .. }) => {
                let is_limited = model_type == "llava_onevision";
                let ratio = (processor["vision_aspect_ratio"].as_str())
                    .or_else(|| config["vision_aspect_ratio"].as_str())
                    .unwrap_or("anyres_max_9");
                let most = ratio
                    .strip_prefix("anyres_max_")
                    .and_then(|most| most.parse().ok());
                let form = Form::Unpadded {
                    patch,
                    more: if is_limited { 0 } else { more },
                    most: most.filter(|_| is_limited),
                };
                ("<image>", token("<image>"), form)
            }
            ("llava", Rule::Whole { .. }) => {
                ("<image>", token("<image>"), Form::Patches { patch, more })
            }
            _ => {
                return Err(Error::Family {
                    model_type: model_type.to_owned(),
                });
            }
        };
        Ok(Self {
            placeholder: placeholder.to_owned(),
            token,
            form,
        })
    }

    /// For an image of which height and width `size` are kept, and that becomes what `plan` says.
    pub fn write(&self, size: Size, plan: &Plan) -> Written {
        let tokens = |count: usize| self.token.repeat(count);
        let only = |count: usize| Written {
            text: tokens(count),
            n_tokens: count,
        };
        let [rows, columns] = plan.grid;
        let patches = |canvas: Size, patch: u32| canvas.map(|side| i64::from(side / patch));
        match &self.form {
            Form::Squares { square } => only(rows * columns / (square * square)),
            Form::Patches { patch, more } => {
                let [h, w] = patches(plan.tiles[0].canvas, *patch);
                only((h * w + more).max(0) as usize)
            }
            Form::Unpadded { patch, more, most } => {
                let [h, w] = patches(plan.tiles[0].canvas, *patch);
                let parts = unpadded(
                    size,
                    [h * rows as i64, w * columns as i64],
                    most.map(|most| (most, h)),
                );
                only((h * w + more + parts[0] * (parts[1] + 1)).max(0) as usize)
            }
            Form::Halved { patch, side } => {
                // The processor says 256 and 16 for the whole, which is this for 32 patches in a row, as published. The model
                // takes whatever its configuration makes of them, one more where they are odd.
                let whole = side.div_ceil(2);
                // Of each tile, every second row and column of patches stands for a square.
                let squares = |length: u32| {
                    let patches = length / patch;
                    (patches / side * whole + (patches % side).div_ceil(2)) as usize
                };
                let lines = |[rows, columns]: [usize; 2]| rows * (columns + 1);
                only(lines(size.map(squares)) + 1 + lines([whole as usize; 2]))
            }
            Form::Mark => only(1),
            Form::Around {
                count,
                square,
                before,
                after,
            } => {
                let own = count.unwrap_or(rows * columns / (square * square));
                let n_tokens = own * plan.tiles.len();
                Written {
                    text: format!("{before}{}{after}", tokens(n_tokens)),
                    n_tokens,
                }
            }
            Form::Places { count } => {
                const AROUND: &str = "<fake_token_around_image>";
                let own = tokens(*count);
                let mut text = String::new();
                if plan.tiles.len() > 1 {
                    for row in 1..=rows {
                        for column in 1..=columns {
                            let place = format!("<row_{row}_col_{column}>");
                            text.extend([AROUND, &place, &own]);
                        }
                        text.push('\n');
                    }
                    text.push('\n');
                }
                text.extend([AROUND, "<global-img>", &own, AROUND]);
                Written {
                    text,
                    n_tokens: count * plan.tiles.len(),
                }
            }
            Form::Rows => {
                let row = tokens(columns);
                let text = vec![row; rows].join("[IMG_BREAK]");
                Written {
                    text: text + "[IMG_END]",
                    n_tokens: rows * columns,
                }
            }
        }
    }
}

/// Rows and columns of patches that are left of `current` ones when the padding of an image of `size` is taken off, shrunk
/// where there are many more than of so many tiles with so many rows.
fn unpadded(size: Size, current: [i64; 2], most: Option<(u32, i64)>) -> [i64; 2] {
    let [height, width] = size.map(f64::from);
    let [mut rows, mut columns] = current;
    // Rounded as Python does, so that what is whole but for the last bits is whole.
    let scaled = |length: f64, scale: f64| ((length * scale * 1e7).round() / 1e7) as i64;
    if width / height > columns as f64 / rows as f64 {
        rows -= (rows - scaled(height, columns as f64 / width)) / 2 * 2;
    } else {
        columns -= (columns - scaled(width, rows as f64 / height)) / 2 * 2;
    }
    if let Some((most, side)) = most {
        let ratio =
            (rows as f64 * columns as f64 / (f64::from(most) * (side * side) as f64)).sqrt();
        if ratio > 1.1 {
            return [rows, columns].map(|size| (size as f64 / ratio).floor() as i64);
        }
    }
    [rows, columns]
}
