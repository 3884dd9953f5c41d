//! Calibration data: where it comes from, how a model's chat template and tokenizer read it, and the windows of tokens
//! cut from it.
//!
//! Knows no tensor and no model: [`load`] gives documents, [`Tokenizer`] and [`ChatTemplate`] read a model directory,
//! [`windows()`] gives token ids, and where in them the images are. What a model writes in an image's place comes from
//! outside, as [`ImagePrompts`]; no image is decoded here.

mod built_in;
mod chat;
mod documents;
mod image_source;
mod jinja;
mod lines;
mod mixture;
mod samples;
mod stream;
mod template_file;
mod tokenizer;
mod windows;

use std::fmt;
use std::path::PathBuf;

pub use built_in::held_out;
pub use chat::ChatTemplate;
pub use documents::{Images, load};
pub use image_source::ImageSource;
pub use samples::{ImagePrompt, ImagePrompts, Reading};
pub use tokenizer::Tokenizer;
pub use windows::{WindowImage, Windows, windows};

/// One piece of calibration data as its author wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Running text.
    Text(String),
    /// A conversation, with or without images.
    Messages(Conversation),
}

/// Turns of one conversation, and where they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub origin: Origin,
    pub messages: Vec<Message>,
    /// Built in: nobody chose it, and a window that cannot hold its images goes without it.
    pub built_in: bool,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever the file says.
    pub role: String,
    /// Text and images in their order; what is neither (tool calls, sound) is left out.
    pub parts: Vec<Part>,
}

/// A part of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    Text(String),
    Image(ImageSource),
}

/// The place that errors name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub path: PathBuf,
    /// Counted from 1; none where the file is the whole document.
    pub line: Option<usize>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl Message {
    /// The parts, a line each. `placeholder` stands for an image, without one nothing does.
    fn lines(&self, placeholder: Option<&str>) -> String {
        let lines = self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image(_) => placeholder,
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

impl Part {
    fn image(&self) -> Option<&ImageSource> {
        match self {
            Self::Text(_) => None,
            Self::Image(image) => Some(image),
        }
    }
}

impl Conversation {
    /// The images of all turns in their order.
    pub fn images(&self) -> impl Iterator<Item = &ImageSource> {
        let parts = self.messages.iter().flat_map(|message| &message.parts);
        parts.filter_map(Part::image)
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Line {
            origin: self.origin.clone(),
            reason: reason.into(),
        }
    }
}

/// What can be wrong with calibration data, a tokenizer or a chat template.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file of a kind that is not read here.
    #[error("{}: not a calibration file; expected .txt, .jsonl or a folder of them", .0.display())]
    Extension(PathBuf),
    /// Nothing to calibrate with.
    #[error("{}: no calibration text in it; expected .txt or .jsonl files that are not empty", .0.display())]
    NoText(PathBuf),
    /// A line of a .jsonl file that is no document, or that this model cannot be shown.
    #[error("{origin}: {reason}")]
    Line { origin: Origin, reason: String },
    /// An image beside a folder's documents that has no text.
    #[error(
        "{}: an image without {}; write its caption there, or name the image in a .jsonl file",
        image.display(),
        caption.display()
    )]
    NoCaption { image: PathBuf, caption: PathBuf },
    /// The model's chat template is none, or writes no conversation.
    #[error("{}{}: {reason}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Template {
        path: PathBuf,
        line: Option<usize>,
        reason: String,
    },
    /// The model directory has no tokenizer.json.
    #[error(
        "{}: no tokenizer.json{}; make one with transformers: \
         AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        directory.display(),
        if *has_sentencepiece { ", only tokenizer.model" } else { "" }
    )]
    NoTokenizer {
        directory: PathBuf,
        has_sentencepiece: bool,
    },
    /// A JSON file of the model directory that is not what it should be.
    #[error("{}: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    /// The tokenizer refused a text or ids.
    #[error("the tokenizer failed")]
    Tokenizer(#[source] tokenizers::Error),
    /// No window fits.
    #[error(
        "--seq-len {seq_len} leaves no room for text: each window starts with {prefix} special tokens"
    )]
    SeqLen { seq_len: usize, prefix: usize },
    /// Less text than the fewest windows take.
    #[error(
        "too little calibration text: {found} tokens found, {needed} needed for {windows} windows of {seq_len}; \
         give more text, or lower --seq-len or --num-samples"
    )]
    TooLittleText {
        found: usize,
        needed: usize,
        windows: usize,
        seq_len: usize,
    },
}
