//! Reading calibration documents: the set that is built in, a file, or a folder of files.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::built_in;
use super::lines::{self, Finder};
use super::{Conversation, Document, Error, ImageSource, Message, Origin, Part};

/// What becomes of the images of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// They are left out unread, for models that do not see.
    Dropped,
    Kept,
}

/// Instruction that a captioned image of a folder is shown with.
const CAPTION_REQUEST: &str = "Describe this image.";

/// Documents from `path`, or the built-in set without one, less what [`super::held_out`] keeps back.
///
/// A .txt file is one document. A .jsonl file has one a line: an object with `text`, or with `messages` whose
/// `content` is a string or a list of parts, texts and images; paths of images start from the file's folder.
/// A folder gives its .txt and .jsonl files in the order of their names, without its subfolders. Where images are
/// kept, an image in it (.png, .jpg, .jpeg, .webp) and the .txt file of the same name are one document, a conversation
/// that asks for a description. Documents with neither text nor image are dropped.
///
/// # Errors
/// Files that cannot be read, by name; lines that are no document or name an image that is not there, by file and line.
pub fn load(path: Option<&Path>, images: Images) -> Result<Vec<Document>, Error> {
    let Some(path) = path else {
        return built_in::calibration(images);
    };
    let files = if path.is_dir() {
        files_of(path, images)?
    } else {
        vec![path.to_path_buf()]
    };
    let mut documents = Vec::new();
    for file in &files {
        read(file, images, &mut documents)?;
    }
    if documents.is_empty() {
        return Err(Error::NoText(path.to_path_buf()));
    }
    Ok(documents)
}

/// The documents' files in `directory`, sorted. An image stands for its caption, whose file is not listed.
fn files_of(directory: &Path, images: Images) -> Result<Vec<PathBuf>, Error> {
    let io = |source| Error::Io {
        path: directory.to_path_buf(),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let wanted =
            is_txt(&path) || is_jsonl(&path) || (images == Images::Kept && is_image(&path));
        if path.is_file() && wanted {
            files.push(path);
        }
    }
    files.sort();
    let captions: Vec<PathBuf> = (files.iter())
        .filter(|path| is_image(path))
        .map(|path| path.with_extension("txt"))
        .collect();
    files.retain(|path| !captions.contains(path));
    Ok(files)
}

fn read(path: &Path, images: Images, documents: &mut Vec<Document>) -> Result<(), Error> {
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
        let folder = path.parent().unwrap_or(Path::new(""));
        let find = |place: &str| ImageSource::parse(place, folder);
        let find = (images == Images::Kept).then_some(&find as &Finder<'_>);
        read_lines(path, BufReader::new(file), find, documents)
    } else if images == Images::Kept && is_image(path) {
        documents.push(Document::Messages(captioned(path)?));
        Ok(())
    } else {
        Err(Error::Extension(path.to_path_buf()))
    }
}

/// The image at `path` and its caption as a question and its answer.
fn captioned(path: &Path) -> Result<Conversation, Error> {
    let caption = path.with_extension("txt");
    let text = match fs::read_to_string(&caption) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => {
            let path = caption;
            return Err(Error::Io { path, source });
        }
    };
    if text.is_empty() {
        return Err(Error::NoCaption {
            image: path.to_path_buf(),
            caption,
        });
    }
    let turn = |role: &str, parts| Message {
        role: role.into(),
        parts,
    };
    let image = Part::Image(ImageSource::File(path.to_path_buf()));
    Ok(Conversation {
        origin: Origin {
            path: path.to_path_buf(),
            line: None,
        },
        messages: vec![
            turn("user", vec![image, Part::Text(CAPTION_REQUEST.into())]),
            turn("assistant", vec![Part::Text(text)]),
        ],
        built_in: false,
    })
}

fn is_txt(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("txt"))
}

pub(super) fn is_jsonl(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("jsonl"))
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().map(OsStr::to_ascii_lowercase);
    let known = ["png", "jpg", "jpeg", "webp"];
    extension.is_some_and(|extension| known.iter().any(|known| extension == *known))
}

/// Adds the documents of a .jsonl file, whose images `images` finds. Without it they are left out.
pub(super) fn read_lines(
    path: &Path,
    lines: impl BufRead,
    images: Option<&Finder<'_>>,
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
        let origin = Origin {
            path: path.to_path_buf(),
            line: Some(index + 1),
        };
        let document = lines::parse(&line, origin.clone(), images)
            .map_err(|reason| Error::Line { origin, reason })?;
        if document.n_images() > 0 || !document.text().trim().is_empty() {
            documents.push(document);
        }
    }
    Ok(())
}

impl Document {
    /// The document as running text. A conversation becomes a transcript, `role: content` with a blank line between
    /// turns: the words and the turns, without any model's chat template, and without images.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Messages(chat) => chat.transcript(None).into(),
        }
    }

    pub(super) fn conversation(&self) -> Option<&Conversation> {
        match self {
            Self::Text(_) => None,
            Self::Messages(chat) => Some(chat),
        }
    }

    /// Images in it.
    pub fn n_images(&self) -> usize {
        self.conversation().map_or(0, |chat| chat.images().count())
    }
}

impl Conversation {
    /// `role: content` with a blank line between turns. `placeholder` stands where an image is, without one nothing
    /// does. Turns of nothing are left out.
    pub(super) fn transcript(&self, placeholder: Option<&str>) -> String {
        let turns: Vec<String> = (self.messages.iter())
            .map(|message| (&message.role, message.lines(placeholder)))
            .filter(|(_, content)| !content.trim().is_empty())
            .map(|(role, content)| format!("{role}: {content}"))
            .collect();
        turns.join("\n\n")
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn message(role: &str, parts: Vec<Part>) -> Message {
        Message {
            role: role.into(),
            parts,
        }
    }

    fn text(content: &str) -> Part {
        Part::Text(content.into())
    }

    fn chat(path: &Path, line: Option<usize>, messages: Vec<Message>) -> Document {
        let path = path.to_path_buf();
        let origin = Origin { path, line };
        Document::Messages(Conversation {
            origin,
            messages,
            built_in: false,
        })
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
        let documents = load(Some(folder.path()), Images::Dropped).unwrap();
        let turns = vec![
            message("user", vec![text("hi")]),
            message("assistant", vec![text("ho")]),
        ];
        assert_eq!(
            documents,
            [
                Document::Text("first".into()),
                chat(&folder.path().join("a.jsonl"), Some(3), turns),
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
            let error = load(Some(&path), Images::Dropped).unwrap_err().to_string();
            assert!(error.contains("x.jsonl:3: "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_holds_no_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            load(Some(folder.path()), Images::Dropped),
            Err(Error::NoText(_))
        ));
        let path = folder.path().join("x.pdf");
        assert!(matches!(
            load(Some(&path), Images::Dropped),
            Err(Error::Extension(_))
        ));
        let path = folder.path().join("x.txt");
        assert!(matches!(
            load(Some(&path), Images::Dropped),
            Err(Error::Io { .. })
        ));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(
            load(Some(&path), Images::Dropped),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn an_image_and_its_caption_are_a_conversation() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, content) in [
            ("a.txt", "just text"),
            ("b.PNG", "pixels"),
            ("b.txt", " A cat. \n"),
            ("c.gif", "not an image that is read"),
        ] {
            fs::write(path(name), content).unwrap();
        }
        let found = load(Some(folder.path()), Images::Kept).unwrap();
        let image = Part::Image(ImageSource::File(path("b.PNG")));
        let turns = vec![
            message("user", vec![image, text("Describe this image.")]),
            message("assistant", vec![text("A cat.")]),
        ];
        let just_text = Document::Text("just text".into());
        assert_eq!(
            found,
            [just_text.clone(), chat(&path("b.PNG"), None, turns)]
        );
        let found = load(Some(folder.path()), Images::Dropped).unwrap();
        assert_eq!(found, [just_text, Document::Text(" A cat. \n".into())]);
        fs::remove_file(path("b.txt")).unwrap();
        let error = load(Some(folder.path()), Images::Kept).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("b.PNG: ") && error.contains("b.txt"),
            "{error}"
        );
        assert_eq!(load(Some(folder.path()), Images::Dropped).unwrap().len(), 1);
    }

    #[test]
    fn images_of_lines_are_found_from_the_folder_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        let line = r#"{"messages": [{"role": "user", "content": [{"type": "image", "path": "y/z.webp"}]}]}"#;
        fs::write(&path, format!("\n{line}\n")).unwrap();
        let error = load(Some(&path), Images::Kept).unwrap_err().to_string();
        assert!(error.contains("x.jsonl:2: no image "), "{error}");
        fs::create_dir(folder.path().join("y")).unwrap();
        let image = folder.path().join("y/z.webp");
        fs::write(&image, "").unwrap();
        let found = load(Some(&path), Images::Kept).unwrap();
        let turns = vec![message("user", vec![Part::Image(ImageSource::File(image))])];
        assert_eq!(found, [chat(&path, Some(2), turns)]);
        let dropped = load(Some(&path), Images::Dropped);
        assert!(matches!(dropped, Err(Error::NoText(_))));
    }
}
