//! Calibration text: where it comes from, how a model's tokenizer reads it, and the windows of tokens cut from it.
//!
//! Knows no tensor and no model: [`load`] gives documents, [`Tokenizer`] reads a model directory's tokenizer.json,
//! [`windows()`] gives token ids.

mod documents;
mod tokenizer;
mod windows;

use std::path::PathBuf;

pub use documents::{held_out, load};
pub use tokenizer::Tokenizer;
pub use windows::{Windows, windows};

/// One piece of calibration text as its author wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Running text.
    Text(String),
    /// A conversation.
    Messages(Vec<Message>),
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever the file says.
    pub role: String,
    /// The text of the turn; parts that are not text (images, tool calls) are left out.
    pub content: String,
}

/// What can be wrong with calibration text or a tokenizer.
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
    /// A line of a .jsonl file that is no document.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
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
