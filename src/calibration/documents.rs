//! Reading calibration documents: the set that is built in, a file, or a folder of files.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Document, Error, Message};

/// The built-in set: every file of `calib-data/`, whose README.md names the sources. One line a file, sorted.
macro_rules! embedded {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../../calib-data/", $name)))),+]
    };
}
const EMBEDDED: &[(&str, &str)] = embedded![
    "chinese.txt",
    "code.txt",
    "countries.txt",
    "databases.txt",
    "dialogue.jsonl",
    "essays.txt",
    "french.txt",
    "german.txt",
    "italian.txt",
    "japanese.txt",
    "jargon.txt",
    "languages.txt",
    "mathematics.txt",
    "novels.txt",
    "opticks.txt",
    "portuguese.txt",
    "russian.txt",
    "satire.txt",
    "spanish.txt",
];

/// Share of the built-in set that calibration never sees, so that quality can be measured on it.
const HELD_OUT: f64 = 0.1;

/// Documents from `path`, or the built-in set without one, less what [`held_out`] keeps back.
///
/// A .txt file is one document. A .jsonl file has one a line: an object with `text`, or with `messages` whose
/// `content` is a string or a list of parts. A folder gives its .txt and .jsonl files in the order of their names,
/// without its subfolders. Documents without text are dropped.
pub fn load(path: Option<&Path>) -> Result<Vec<Document>, Error> {
    let Some(path) = path else {
        return Ok(divided(embedded()?, Part::Calibration));
    };
    let files = if path.is_dir() {
        files_of(path)?
    } else {
        vec![path.to_path_buf()]
    };
    let mut documents = Vec::new();
    for file in &files {
        read(file, &mut documents)?;
    }
    if documents.is_empty() {
        return Err(Error::NoText(path.to_path_buf()));
    }
    Ok(documents)
}

/// The part of the built-in set that [`load`] leaves out: the end of each text, and every tenth conversation.
pub fn held_out() -> Result<Vec<Document>, Error> {
    Ok(divided(embedded()?, Part::HeldOut))
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Calibration,
    HeldOut,
}

fn divided(documents: Vec<Document>, part: Part) -> Vec<Document> {
    let nth = (1.0 / HELD_OUT) as usize;
    let divide = |(index, document): (usize, Document)| match document {
        Document::Text(text) => {
            let wanted = text.floor_char_boundary((text.len() as f64 * (1.0 - HELD_OUT)) as usize);
            let boundary = text[..wanted].rfind("\n\n").unwrap_or(wanted);
            let (first, last) = text.split_at(boundary);
            let kept = if part == Part::Calibration {
                first
            } else {
                last.trim_start()
            };
            Some(Document::Text(kept.to_owned()))
        }
        messages @ Document::Messages(_) => {
            ((index % nth == nth - 1) == (part == Part::HeldOut)).then_some(messages)
        }
    };
    documents
        .into_iter()
        .enumerate()
        .filter_map(divide)
        .collect()
}

fn embedded() -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for (name, text) in EMBEDDED {
        if is_jsonl(Path::new(name)) {
            read_lines(Path::new(name), text.as_bytes(), &mut documents)?;
        } else {
            documents.push(Document::Text((*text).to_owned()));
        }
    }
    Ok(documents)
}

fn files_of(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io {
        path: directory.to_path_buf(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_file() && (is_txt(&path) || is_jsonl(&path)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path, documents: &mut Vec<Document>) -> Result<(), Error> {
    let io = |source| Error::Io {
        path: path.to_path_buf(),
        source,
    };
    if is_txt(path) {
        let text = fs::read_to_string(path).map_err(io)?;
        if !text.trim().is_empty() {
            documents.push(Document::Text(text));
        }
        Ok(())
    } else if is_jsonl(path) {
        let file = fs::File::open(path).map_err(io)?;
        read_lines(path, BufReader::new(file), documents)
    } else {
        Err(Error::Extension(path.to_path_buf()))
    }
}

fn is_txt(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("txt"))
}

fn is_jsonl(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("jsonl"))
}

fn read_lines(
    path: &Path,
    lines: impl BufRead,
    documents: &mut Vec<Document>,
) -> Result<(), Error> {
    for (index, line) in lines.lines().enumerate() {
        let line = line.map_err(|source| Error::Io {
            path: path.to_path_buf(),
            source,
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let document = parse(&line).map_err(|reason| Error::Line {
            path: path.to_path_buf(),
            line: index + 1,
            reason,
        })?;
        if !document.text().trim().is_empty() {
            documents.push(document);
        }
    }
    Ok(())
}

/// One line of a .jsonl file; the error says what is wrong with it.
fn parse(line: &str) -> Result<Document, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(text) = value.get("text") {
        let text = text.as_str().ok_or("`text` is not a string")?;
        return Ok(Document::Text(text.to_owned()));
    }
    let messages = value
        .get("messages")
        .ok_or("neither `text` nor `messages` in it")?;
    let messages = messages.as_array().ok_or("`messages` is not a list")?;
    let messages: Result<Vec<Message>, String> = messages.iter().map(message).collect();
    Ok(Document::Messages(messages?))
}

fn message(value: &Value) -> Result<Message, String> {
    let role = value.get("role").and_then(Value::as_str);
    let role = role.ok_or("a message without `role`")?.to_owned();
    let content = match value.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part.get("text").and_then(Value::as_str))
                .collect();
            texts.join("\n")
        }
        Some(_) => {
            return Err("a message's `content` is neither a string nor a list of parts".into());
        }
    };
    Ok(Message { role, content })
}

impl Document {
    /// The document as running text. A conversation becomes a transcript, `role: content` with a blank line between
    /// turns: the words and the turns, without any model's chat template.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Messages(messages) => {
                let turns: Vec<String> = messages
                    .iter()
                    .filter(|message| !message.content.trim().is_empty())
                    .map(|message| format!("{}: {}", message.role, message.content))
                    .collect();
                turns.join("\n\n").into()
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }

    #[test]
    fn a_folder_gives_its_files_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("b.txt", "second");
        write(
            "a.jsonl",
            "{\"text\": \"first\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \
             \"text\": \"hi\"}, {\"type\": \"image\"}]}, {\"role\": \"assistant\", \"content\": \"ho\"}]}\n",
        );
        write("c.txt", " \n");
        write("README.md", "not a document");
        fs::create_dir(folder.path().join("d.txt")).unwrap();
        let documents = load(Some(folder.path())).unwrap();
        let chat = vec![message("user", "hi"), message("assistant", "ho")];
        assert_eq!(
            documents,
            [
                Document::Text("first".into()),
                Document::Messages(chat),
                Document::Text("second".into()),
            ]
        );
        assert_eq!(documents[1].text(), "user: hi\n\nassistant: ho");
    }

    #[test]
    fn errors_name_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        for (line, reason) in [
            ("{\"text\": ", "EOF"),
            ("{\"text\": 3}", "`text` is not a string"),
            ("[]", "neither `text` nor `messages`"),
            ("{\"messages\": {}}", "`messages` is not a list"),
            ("{\"messages\": [{\"content\": \"a\"}]}", "without `role`"),
            (
                "{\"messages\": [{\"role\": \"user\", \"content\": 1}]}",
                "neither a string nor a list",
            ),
        ] {
            fs::write(&path, format!("{{\"text\": \"good\"}}\n\n{line}\n")).unwrap();
            let error = load(Some(&path)).unwrap_err().to_string();
            assert!(error.contains("x.jsonl:3: "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_holds_no_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load(Some(folder.path())), Err(Error::NoText(_))));
        let path = folder.path().join("x.pdf");
        assert!(matches!(load(Some(&path)), Err(Error::Extension(_))));
        let path = folder.path().join("x.txt");
        assert!(matches!(load(Some(&path)), Err(Error::Io { .. })));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(load(Some(&path)), Err(Error::Io { .. })));
    }

    #[test]
    fn the_built_in_set_is_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("calib-data");
        let built_in = embedded().unwrap();
        assert!(built_in == load(Some(&folder)).unwrap());
        let chars: usize = built_in.iter().map(|d| d.text().chars().count()).sum();
        assert!(chars > 600_000, "{chars}");
    }
}
