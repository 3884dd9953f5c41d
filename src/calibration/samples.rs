//! Documents as a model reads them: tokens, and which of them stand for images.

use std::borrow::Cow;

use super::{ChatTemplate, Conversation, Document, Error, ImageSource, Tokenizer};

/// What a model's processor writes in an image's place.
pub trait ImagePrompts: Sync {
    /// What the chat template writes for an image, and a prompt replaces: `<|image_pad|>`, `<image>`.
    fn placeholder(&self) -> &str;

    /// The token that stands for each vector of an image.
    fn image_token(&self) -> &str;

    /// The text for an image of `width` by `height` pixels, EXIF orientation applied.
    ///
    /// # Errors
    /// Where the model takes no image of that size.
    fn prompt(
        &self,
        width: u32,
        height: u32,
    ) -> Result<ImagePrompt, Box<dyn std::error::Error + Send + Sync>>;
}

/// The text that an image becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePrompt {
    pub text: String,
    /// How many [`ImagePrompts::image_token`] are in it: the image's vectors.
    pub n_tokens: usize,
}

/// How a model reads documents.
#[derive(Clone, Copy)]
pub struct Reading<'a> {
    pub tokenizer: &'a Tokenizer,
    /// What writes conversations; without one they are transcripts.
    pub template: Option<&'a ChatTemplate>,
    /// What writes images; without one they are left out.
    pub prompts: Option<&'a dyn ImagePrompts>,
}

/// Tokens that stay together until windows are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub ids: Vec<u32>,
    pub images: Vec<PlacedImage>,
}

/// An image and the positions of its tokens in a sample, ascending and at least one; others may stand between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlacedImage {
    pub source: ImageSource,
    pub positions: Vec<usize>,
}

impl<'a> Reading<'a> {
    /// Words of text alone, as they are written into the model's context.
    pub fn plain(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            template: None,
            prompts: None,
        }
    }

    /// The text of a document without its images, and whether a chat template wrote it.
    pub(super) fn text<'d>(&self, document: &'d Document) -> Result<(Cow<'d, str>, bool), Error> {
        let text = document.text();
        match (document, self.template) {
            (Document::Messages(chat), Some(template)) if !text.trim().is_empty() => {
                Ok((template.render(chat, None)?.into(), true))
            }
            _ => Ok((text, false)),
        }
    }

    /// `ids` without the special tokens at their head that the tokenizer puts before every text: windows begin with them
    /// already.
    pub(super) fn without_prefix(&self, mut ids: Vec<u32>) -> Vec<u32> {
        let prefix = self.tokenizer.prefix();
        if ids.starts_with(prefix) {
            ids.drain(..prefix.len());
        }
        ids
    }

    /// A conversation with its images, as tokens.
    ///
    /// # Errors
    /// By the conversation's place: a template that refuses it, images that cannot be read or that the model refuses, and
    /// numbers of placeholders or of image tokens that do not agree.
    pub(super) fn sample(
        &self,
        chat: &Conversation,
        prompts: &dyn ImagePrompts,
    ) -> Result<Sample, Error> {
        let placeholder = prompts.placeholder();
        let written = match self.template {
            Some(template) => template.render(chat, Some(placeholder))?,
            None => chat.transcript(Some(placeholder)),
        };
        let sources: Vec<&ImageSource> = chat.images().collect();
        let between: Vec<&str> = written.split(placeholder).collect();
        if between.len() != sources.len() + 1 {
            return Err(chat.error(format!(
                "{} images, but {placeholder} stands {} times in the conversation as the chat template writes it; \
                 an image's place is a part of its own, and no text may name {placeholder}",
                sources.len(),
                between.len() - 1
            )));
        }
        let mut text = String::new();
        let mut counts = Vec::new();
        for (before, source) in between.iter().zip(&sources) {
            let (width, height) = source.size().map_err(|reason| chat.error(reason))?;
            let prompt = prompts.prompt(width, height).map_err(|error| {
                chat.error(format!("{source}, {width} by {height} pixels: {error}"))
            })?;
            text.push_str(before);
            text.push_str(&prompt.text);
            counts.push(prompt.n_tokens);
        }
        text.push_str(between.last().unwrap_or(&""));
        let ids = self.without_prefix(self.tokenizer.encode(&text)?);
        let images = self.place(&ids, &sources, &counts, prompts.image_token());
        let images = images.map_err(|reason| chat.error(reason))?;
        Ok(Sample { ids, images })
    }

    /// The images with their tokens in `ids`, `counts` of them each.
    fn place(
        &self,
        ids: &[u32],
        sources: &[&ImageSource],
        counts: &[usize],
        token: &str,
    ) -> Result<Vec<PlacedImage>, String> {
        let id = self.tokenizer.id(token);
        let id = id.ok_or_else(|| format!("tokenizer.json has no token {token} for images"))?;
        let mut positions = (0..ids.len()).filter(|&at| ids[at] == id);
        let n_wanted: usize = counts.iter().sum();
        let n_found = positions.clone().count();
        if n_found != n_wanted || counts.contains(&0) {
            return Err(format!(
                "{n_found} tokens {token} after tokenization, but the images have {counts:?} vectors; \
                 no text may name {token}, and tokenizer.json must be the model's own"
            ));
        }
        let place = |(source, count): (&&ImageSource, &usize)| PlacedImage {
            source: (*source).clone(),
            positions: positions.by_ref().take(*count).collect(),
        };
        Ok(sources.iter().zip(counts).map(place).collect())
    }
}

impl PlacedImage {
    /// Whether a window that begins at `at` of the sample would begin between this image's tokens, or with the first.
    pub(super) fn holds(&self, at: usize) -> bool {
        let ends = (self.positions.first(), self.positions.last());
        matches!(ends, (Some(first), Some(last)) if (*first..=*last).contains(&at))
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A model whose images have a token `w900` for each four pixels of width, a `w901` after each line of two pixels,
    /// and `w902` around.
    pub struct Prompts;

    impl ImagePrompts for Prompts {
        fn placeholder(&self) -> &'static str {
            "w999"
        }

        fn image_token(&self) -> &'static str {
            "w900"
        }

        fn prompt(
            &self,
            width: u32,
            height: u32,
        ) -> Result<ImagePrompt, Box<dyn std::error::Error + Send + Sync>> {
            if width > 1000 {
                return Err("at most 1000 pixels".into());
            }
            let (columns, lines) = (width as usize / 4, height as usize / 2);
            let line = "w900 ".repeat(columns) + "w901 ";
            Ok(ImagePrompt {
                text: format!("w902 {}w902", line.repeat(lines)),
                n_tokens: columns * lines,
            })
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::image_source::testing::png;
    use super::super::tokenizer::testing::directory;
    use super::super::{Message, Origin, Part};
    use super::testing::Prompts;
    use super::*;

    fn chat(parts: Vec<Part>) -> Conversation {
        let role = "w1".to_owned();
        Conversation {
            origin: Origin {
                path: "x.jsonl".into(),
                line: Some(3),
            },
            messages: vec![Message { role, parts }],
            built_in: false,
        }
    }

    fn image(width: u32, height: u32) -> Part {
        Part::Image(ImageSource::Bytes(png(width, height).into()))
    }

    fn text(text: &str) -> Part {
        Part::Text(text.into())
    }

    #[test]
    fn an_image_becomes_its_prompt() {
        let model = directory(&["<bos>"], &[]);
        let template = "{{ '<bos> ' }}{% for m in messages %}{{ m.role }} {% for p in m.content %}\
             {{ ' w999 ' if p.type == 'image' else p.text }}{% endfor %} <eos>{% endfor %}";
        std::fs::write(model.path().join("chat_template.jinja"), template).unwrap();
        let tokenizer = Tokenizer::open(model.path()).unwrap();
        let template = ChatTemplate::open(model.path()).unwrap().unwrap();
        let reading = Reading {
            tokenizer: &tokenizer,
            template: Some(&template),
            prompts: Some(&Prompts),
        };
        let chat = chat(vec![image(8, 4), text("w5"), image(4, 2)]);
        let found = reading.sample(&chat, &Prompts).unwrap();
        // Ids are 3 more than the word's number; BOS is left to the window, EOS is a special token.
        let ids = [
            4, 905, 903, 903, 904, 903, 903, 904, 905, 8, 905, 903, 904, 905, 2,
        ];
        assert_eq!(found.ids, ids);
        let positions: Vec<_> = found.images.iter().map(|i| i.positions.clone()).collect();
        assert_eq!(positions, [vec![2, 3, 5, 6], vec![11]]);
        let sources: Vec<_> = found.images.iter().map(|image| &image.source).collect();
        assert_eq!(sources, chat.images().collect::<Vec<_>>());
        assert!(!found.images[0].holds(1) && found.images[0].holds(2));
        assert!(found.images[0].holds(6) && !found.images[0].holds(7));
    }

    #[test]
    fn what_does_not_agree_is_refused_by_the_line() {
        struct Miscounted;
        impl ImagePrompts for Miscounted {
            fn placeholder(&self) -> &str {
                Prompts.placeholder()
            }
            fn image_token(&self) -> &str {
                Prompts.image_token()
            }
            fn prompt(
                &self,
                width: u32,
                height: u32,
            ) -> Result<ImagePrompt, Box<dyn std::error::Error + Send + Sync>> {
                let prompt = Prompts.prompt(width, height)?;
                let n_tokens = prompt.n_tokens + 1;
                Ok(ImagePrompt { n_tokens, ..prompt })
            }
        }
        let model = directory(&[], &[]);
        let tokenizer = Tokenizer::open(model.path()).unwrap();
        let reading = Reading::plain(&tokenizer);
        let check = |parts: Vec<Part>, prompts: &dyn ImagePrompts, reason: &str| {
            let error = reading
                .sample(&chat(parts), prompts)
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("x.jsonl:3: "), "{error}");
            assert!(error.contains(reason), "{error}");
        };
        check(
            vec![image(8, 4), text("w999")],
            &Prompts,
            "1 images, but w999 stands 2 times",
        );
        check(
            vec![image(8, 4), text("w900")],
            &Prompts,
            "5 tokens w900 after tokenization, but the images have [4] vectors",
        );
        check(vec![image(8, 4)], &Miscounted, "4 tokens w900");
        check(
            vec![image(2000, 4)],
            &Prompts,
            "2000 by 4 pixels: at most 1000 pixels",
        );
        check(vec![image(2, 4)], &Prompts, "0 tokens w900");
        let broken = Part::Image(ImageSource::Bytes(b"GIF89a".as_slice().into()));
        check(vec![broken], &Prompts, "give a PNG");
    }
}
