//! The built-in calibration set: texts, and conversations about images for models that see.

use std::path::Path;

use super::documents::{is_jsonl, read_lines};
use super::lines::Finder;
use super::{Document, Error, ImageSource, Images};

/// The built-in texts: every file of `calib-data/`, whose README.md names the sources. One line a file, sorted.
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

/// The built-in conversations about images, for models that see. The images are in `calib-data/images/`, all drawn by
/// `scripts/draw_images.py`.
const EMBEDDED_IMAGES: (&str, &str) = (
    "images.jsonl",
    include_str!("../../calib-data/images.jsonl"),
);
macro_rules! embedded_images {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!("../../calib-data/images/", $name)))),+]
    };
}
const IMAGE_FILES: &[(&str, &[u8])] = embedded_images![
    "bar_chart.png",
    "blackboard.jpg",
    "bookshelf.jpg",
    "calendar.png",
    "chess.png",
    "city_map.png",
    "clock.png",
    "dashboard.png",
    "dialog.png",
    "filled_form.png",
    "floor_plan.png",
    "flow_chart.png",
    "handwriting.jpg",
    "landscape.jpg",
    "line_chart.png",
    "night_sea.jpg",
    "old_page.jpg",
    "pie_chart.png",
    "poster.png",
    "receipt.png",
    "scatter.png",
    "shapes.png",
    "text_page.png",
    "timetable.png",
];

/// Share of the built-in set that calibration never sees, so that quality can be measured on it.
const HELD_OUT: f64 = 0.1;

/// The built-in set less what [`held_out`] keeps back.
pub(super) fn calibration(images: Images) -> Result<Vec<Document>, Error> {
    Ok(divided(embedded(images)?, Division::Calibration))
}

/// The part of the built-in set that [`super::load`] leaves out: the end of each text, every tenth conversation, and the last
/// conversations about images, whose images no other shows.
pub fn held_out(images: Images) -> Result<Vec<Document>, Error> {
    Ok(divided(embedded(images)?, Division::HeldOut))
}

#[derive(Clone, Copy, PartialEq)]
enum Division {
    Calibration,
    HeldOut,
}

fn divided(documents: Vec<Document>, division: Division) -> Vec<Document> {
    let nth = (1.0 / HELD_OUT) as usize;
    let n_seeing = documents.iter().filter(|d| d.n_images() > 0).count();
    let seeing_from = documents.len() - (n_seeing as f64 * HELD_OUT).ceil() as usize;
    let divide = |(index, document): (usize, Document)| match document {
        Document::Text(text) => {
            let wanted = text.floor_char_boundary((text.len() as f64 * (1.0 - HELD_OUT)) as usize);
            let boundary = text[..wanted].rfind("\n\n").unwrap_or(wanted);
            let (first, last) = text.split_at(boundary);
            let kept = if division == Division::Calibration {
                first
            } else {
                last.trim_start()
            };
            Some(Document::Text(kept.to_owned()))
        }
        messages @ Document::Messages(_) => {
            let held_out = if messages.n_images() > 0 {
                index >= seeing_from
            } else {
                index % nth == nth - 1
            };
            (held_out == (division == Division::HeldOut)).then_some(messages)
        }
    };
    documents
        .into_iter()
        .enumerate()
        .filter_map(divide)
        .collect()
}

/// The texts, and after them the conversations about images.
fn embedded(images: Images) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for (name, text) in EMBEDDED {
        if is_jsonl(Path::new(name)) {
            read_lines(Path::new(name), text.as_bytes(), None, &mut documents)?;
        } else {
            documents.push(Document::Text((*text).to_owned()));
        }
    }
    if images == Images::Kept {
        let (name, text) = EMBEDDED_IMAGES;
        let find: &Finder<'_> = &embedded_image;
        read_lines(Path::new(name), text.as_bytes(), Some(find), &mut documents)?;
    }
    for document in &mut documents {
        if let Document::Messages(chat) = document {
            chat.built_in = true;
        }
    }
    Ok(documents)
}

fn embedded_image(place: &str) -> Result<ImageSource, String> {
    let mut files = IMAGE_FILES.iter();
    let found = files.find(|(name, _)| place.strip_prefix("images/") == Some(name));
    let (_, bytes) = found.ok_or_else(|| format!("no built-in image {place}"))?;
    Ok(ImageSource::Bytes((*bytes).into()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::load;
    use super::*;

    #[test]
    fn the_built_in_set_is_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("calib-data");
        // Each document as its text and the bytes of its images.
        let content = |documents: Vec<Document>| {
            let content = |document: &Document| {
                let images = match document {
                    Document::Text(_) => Vec::new(),
                    Document::Messages(chat) => {
                        chat.images().map(|i| i.read().unwrap().to_vec()).collect()
                    }
                };
                (document.text().into_owned(), images)
            };
            let mut content: Vec<_> = documents.iter().map(content).collect();
            content.sort();
            content
        };
        let built_in = content(embedded(Images::Kept).unwrap());
        assert!(built_in == content(load(Some(&folder), Images::Kept).unwrap()));
        let texts = embedded(Images::Dropped).unwrap();
        assert!(texts.iter().all(|document| document.n_images() == 0));
        let chars: usize = texts.iter().map(|d| d.text().chars().count()).sum();
        assert!(chars > 600_000, "{chars}");
        let shown: usize = IMAGE_FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(shown < 1_200_000, "{shown}");
    }

    #[test]
    fn what_is_held_out_is_not_calibrated_on() {
        let images = |documents: Vec<Document>| {
            let mut images = Vec::new();
            for document in documents {
                if let Document::Messages(chat) = document {
                    images.extend(chat.images().cloned());
                }
            }
            images
        };
        let calibration = load(None, Images::Kept).unwrap();
        let held = held_out(Images::Kept).unwrap();
        let n_conversations = |documents: &[Document]| {
            documents
                .iter()
                .filter(|d| matches!(d, Document::Messages(_)))
                .count()
        };
        let all = embedded(Images::Kept).unwrap();
        let together = n_conversations(&calibration) + n_conversations(&held);
        assert_eq!(together, n_conversations(&all));
        let held = images(held);
        assert!(!held.is_empty());
        assert!(
            images(calibration)
                .iter()
                .all(|image| !held.contains(image))
        );
        assert!(images(load(None, Images::Dropped).unwrap()).is_empty());
    }
}
