//! One line of a .jsonl file: a text, or a conversation in any of the spellings that are about.

use serde_json::Value;

use super::{Conversation, Document, ImageSource, Message, Origin, Part};

/// Finds an image by the path that a line gives.
pub(super) type Finder<'a> = dyn Fn(&str) -> Result<ImageSource, String> + 'a;

/// The document of a line; the error says what is wrong with it.
///
/// An object with `text`, or with `messages` whose `content` is a string or a list of parts. Without `images` parts that
/// are images are left out unread. With it they are
/// `{"type": "image", "image": PLACE}` (or `path` or `url` for it, or `base64` with the bytes),
/// `{"type": "image_url", "image_url": {"url": PLACE}}`, or `{"type": "image"}` alone for the next of the line's own list
/// `images`.
pub(super) fn parse(
    line: &str,
    origin: Origin,
    images: Option<&Finder<'_>>,
) -> Result<Document, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(text) = value.get("text") {
        let text = text.as_str().ok_or("`text` is not a string")?;
        return Ok(Document::Text(text.to_owned()));
    }
    let messages = value
        .get("messages")
        .ok_or("neither `text` nor `messages` in it")?;
    let messages = messages.as_array().ok_or("`messages` is not a list")?;
    let mut reader = images
        .map(|find| ImageReader::new(&value, find))
        .transpose()?;
    let messages: Result<Vec<Message>, String> = messages
        .iter()
        .map(|value| message(value, reader.as_mut()))
        .collect();
    if let Some(reader) = &reader {
        reader.check_count()?;
    }
    Ok(Document::Messages(Conversation {
        origin,
        messages: messages?,
        built_in: false,
    }))
}

fn message(value: &Value, mut images: Option<&mut ImageReader<'_>>) -> Result<Message, String> {
    let role = value.get("role").and_then(Value::as_str);
    let role = role.ok_or("a message without `role`")?.to_owned();
    let mut parts = Vec::new();
    match value.get("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => parts.push(Part::Text(text.clone())),
        Some(Value::Array(values)) => {
            for value in values {
                if let Some(text) = value.get("text").and_then(Value::as_str) {
                    parts.push(Part::Text(text.to_owned()));
                } else if let Some(images) = images.as_mut()
                    && is_image(value)
                {
                    parts.push(Part::Image(images.read(value)?));
                }
            }
        }
        Some(_) => {
            return Err("a message's `content` is neither a string nor a list of parts".into());
        }
    }
    Ok(Message { role, parts })
}

fn is_image(part: &Value) -> bool {
    match part.get("type").and_then(Value::as_str) {
        Some(kind) => kind == "image" || kind == "image_url",
        None => part.get("image").is_some() || part.get("image_url").is_some(),
    }
}

/// The images of one line.
struct ImageReader<'a> {
    find: &'a Finder<'a>,
    /// The line's own list, where it has one.
    listed: Option<&'a [Value]>,
    /// Parts so far that name no image themselves.
    n_unnamed: usize,
}

impl<'a> ImageReader<'a> {
    fn new(line: &'a Value, find: &'a Finder<'a>) -> Result<Self, String> {
        let listed = match line.get("images") {
            None | Some(Value::Null) => None,
            Some(Value::Array(images)) => Some(images.as_slice()),
            Some(_) => return Err("`images` is not a list".into()),
        };
        Ok(Self {
            find,
            listed,
            n_unnamed: 0,
        })
    }

    fn read(&mut self, part: &Value) -> Result<ImageSource, String> {
        if let Some(data) = part.get("base64") {
            let data = data
                .as_str()
                .ok_or("`base64` of an image is not a string")?;
            return ImageSource::base64(data);
        }
        let named = ["image", "image_url", "path", "url"];
        if let Some(place) = named.iter().find_map(|key| part.get(key)) {
            return self.place(place);
        }
        let index = self.n_unnamed;
        self.n_unnamed += 1;
        match self.listed {
            None => Err("an image part without `image`, and no list `images` in the line".into()),
            // Too few are told with both numbers once all parts were counted; until then any will do.
            Some(listed) => listed.get(index).map_or_else(
                || Ok(ImageSource::Bytes([].into())),
                |place| self.place(place),
            ),
        }
    }

    /// A place is a string, or an object that holds it.
    fn place(&self, place: &Value) -> Result<ImageSource, String> {
        let held = ["url", "path", "image"]
            .iter()
            .find_map(|key| place.get(key));
        let place = held.unwrap_or(place).as_str();
        let place = place.ok_or("an image that is neither a path nor a data URL")?;
        (self.find)(place)
    }

    fn check_count(&self) -> Result<(), String> {
        match self.listed {
            Some(listed) if listed.len() != self.n_unnamed => Err(format!(
                "{} images in `images` but {} image parts that name none; give one part {{\"type\": \"image\"}} for each",
                listed.len(),
                self.n_unnamed
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            path: "x.jsonl".into(),
            line: Some(1),
        }
    }

    /// Places that begin with `no` are not there.
    fn find(place: &str) -> Result<ImageSource, String> {
        if place.starts_with("no") {
            return Err(format!("no image {place}"));
        }
        Ok(ImageSource::File(place.into()))
    }

    fn line(content: &str, rest: &str) -> String {
        format!("{{\"messages\": [{{\"role\": \"user\", \"content\": {content}}}]{rest}}}")
    }

    fn parts(line: &str) -> Result<Vec<Part>, String> {
        match parse(line, origin(), Some(&find))? {
            Document::Messages(mut chat) => Ok(chat.messages.remove(0).parts),
            Document::Text(text) => Ok(vec![Part::Text(text)]),
        }
    }

    #[test]
    fn all_spellings_of_an_image_are_read() {
        let image = |place: &str| Part::Image(ImageSource::File(place.into()));
        for (part, expected) in [
            (r#"{"type": "image", "image": "a.png"}"#, image("a.png")),
            (r#"{"type": "image", "path": "a.png"}"#, image("a.png")),
            (r#"{"type": "image", "url": "a.png"}"#, image("a.png")),
            (
                r#"{"type": "image_url", "image_url": {"url": "a.png"}}"#,
                image("a.png"),
            ),
            (
                r#"{"type": "image_url", "image_url": "a.png"}"#,
                image("a.png"),
            ),
            (r#"{"image": "a.png"}"#, image("a.png")),
            (
                r#"{"type": "image", "base64": "YWJj"}"#,
                Part::Image(ImageSource::Bytes(b"abc".as_slice().into())),
            ),
            (r#"{"type": "text", "text": "hi"}"#, Part::Text("hi".into())),
        ] {
            assert_eq!(parts(&line(&format!("[{part}]"), "")), Ok(vec![expected]));
        }
        let two = r#"[{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]"#;
        let found = parts(&line(two, r#", "images": ["a.png", {"path": "b.png"}]"#)).unwrap();
        assert_eq!(
            found,
            [image("a.png"), Part::Text("or".into()), image("b.png")]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let one = r#"[{"type": "image"}]"#;
        for (line, reason) in [
            (line(one, ""), "no list `images`"),
            (line(one, r#", "images": 3"#), "`images` is not a list"),
            (
                line(one, r#", "images": ["a.png", "b.png"]"#),
                "2 images in `images` but 1 image parts",
            ),
            (
                line(one, r#", "images": []"#),
                "0 images in `images` but 1 image parts",
            ),
            (
                line("\"text\"", r#", "images": ["a.png"]"#),
                "1 images in `images` but 0 image parts",
            ),
            (
                line(one, r#", "images": ["nothing.png"]"#),
                "no image nothing.png",
            ),
            (
                line(r#"[{"type": "image", "image": 3}]"#, ""),
                "neither a path nor a data URL",
            ),
            (
                line(r#"[{"type": "image", "base64": "*"}]"#, ""),
                "no base64",
            ),
        ] {
            let error = parts(&line).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn images_may_be_left_out_unread() {
        let line = line(
            r#"[{"type": "image", "image": "nothing.png"}, {"type": "text", "text": "hi"}]"#,
            r#", "images": 3"#,
        );
        let Document::Messages(chat) = parse(&line, origin(), None).unwrap() else {
            panic!("a text");
        };
        assert_eq!(chat.messages[0].parts, [Part::Text("hi".into())]);
    }
}
