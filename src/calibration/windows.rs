//! Windows of token ids, cut from documents.

use rayon::prelude::*;

use super::mixture::{Text, floor_char_boundary, mixed_pieces};
use super::samples::Sample;
use super::stream::{IMAGE_SHARE, Seen, Texts};
use super::{Conversation, Document, Error, ImageSource, Reading, Tokenizer};

/// Fewer windows than this are refused, unless fewer were asked for: too little to estimate anything from.
const MIN_WINDOWS: usize = 8;
/// Text that one token is taken to need at most, in bytes; where it is more, a longer head of the text is read.
const BYTES_PER_TOKEN: usize = 8;
/// Tokens before a cut in a text that the cut may have changed. Pre-tokenizers read from left to right and look
/// ahead one run of characters, so it is far fewer.
const CUT_MARGIN: usize = 1024;

/// Calibration samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Token ids, each exactly `seq_len` long and beginning with what the tokenizer puts before a text.
    pub ids: Vec<Vec<u32>>,
    /// The images of each window in the order of their tokens; nothing but empty lists for a model that does not see.
    pub images: Vec<Vec<WindowImage>>,
    /// How many were asked for. There may be fewer; the caller tells.
    pub requested: usize,
    /// Built-in conversations that were left out because they are longer than a window; the caller tells.
    pub n_left_out: usize,
}

/// An image of which a window holds tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowImage {
    pub source: ImageSource,
    /// Where in the window the first of its tokens is.
    pub start: usize,
    /// How many of its tokens are in the window: the first so many image tokens from `start` on, between which others
    /// may stand. Fewer than the image has where the window ends within it.
    pub n_tokens: usize,
}

impl Windows {
    /// Tokens in all windows together.
    pub fn n_tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }
}

/// Cuts `documents` into at most `num_samples` (at least 1) windows of exactly `seq_len` tokens.
///
/// A single text is one stream of tokens: the windows follow each other from its start, whatever the `seed`. Of several
/// documents, the long texts are divided at ends of paragraphs into pieces; the pieces are shuffled by `seed` so that
/// each long document, and the short ones together, have a share in the first windows as in the later ones; they are
/// joined by blank lines and cut. No special token stands between pieces: an instruct model's end of turn would be out
/// of place there. A conversation that a chat template wrote is a piece as it is, with the special tokens in it, but
/// without those that every window begins with.
///
/// Where `reading` has prompts for images, about half of the tokens (`IMAGE_SHARE`) are of conversations with
/// images, spread over all windows. One that is cut within an image ends there: no window begins within an image.
///
/// # Errors
/// [`Error::TooLittleText`] where the text gives fewer than `num_samples` and fewer than 8 windows. By its place in the
/// files, a conversation that the chat template refuses, or with images that cannot be shown in a window.
pub fn windows(
    documents: &[Document],
    reading: &Reading<'_>,
    seq_len: usize,
    num_samples: usize,
    seed: u64,
) -> Result<Windows, Error> {
    let prefix = reading.tokenizer.prefix();
    let body = seq_len.saturating_sub(prefix.len());
    if body == 0 {
        let prefix = prefix.len();
        return Err(Error::SeqLen { seq_len, prefix });
    }
    let mut cutter = Cutter::new(prefix, seq_len, num_samples);
    let n_left_out = if let [Document::Text(text)] = documents {
        let ids = stream(text, reading.tokenizer, body.saturating_mul(num_samples))?;
        let images = Vec::new();
        cutter.add(&Sample { ids, images });
        0
    } else {
        mix(documents, reading, seed, &mut cutter)?
    };
    let least = num_samples.clamp(1, MIN_WINDOWS);
    if cutter.ids.len() < least {
        return Err(Error::TooLittleText {
            found: cutter.ids.len() * body + cutter.open.len().saturating_sub(prefix.len()),
            needed: body.saturating_mul(least),
            windows: least,
            seq_len,
        });
    }
    Ok(Windows {
        ids: cutter.ids,
        images: cutter.images,
        requested: num_samples,
        n_left_out,
    })
}

/// The first `wanted` tokens of `text` (all where there are fewer), as encoding the whole of it gives them.
fn stream(text: &str, tokenizer: &Tokenizer, wanted: usize) -> Result<Vec<u32>, Error> {
    let needed = wanted.saturating_add(CUT_MARGIN);
    let mut len = needed.saturating_mul(BYTES_PER_TOKEN);
    loop {
        let head = &text[..floor_char_boundary(text, len)];
        let mut ids = tokenizer.encode(head)?;
        if head.len() == text.len() || ids.len() >= needed {
            ids.truncate(wanted);
            return Ok(ids);
        }
        len = len.saturating_mul(2);
    }
}

/// Fills the windows with the documents' pieces and conversations, mixed; until they are full, or nothing is left. How
/// many conversations found no place because they are too long.
fn mix(
    documents: &[Document],
    reading: &Reading<'_>,
    seed: u64,
    cutter: &mut Cutter<'_>,
) -> Result<usize, Error> {
    let (seeing, texts): (Vec<&Document>, Vec<&Document>) = (documents.iter())
        .partition(|document| reading.prompts.is_some() && document.n_images() > 0);
    let chats: Vec<&Conversation> = (seeing.into_iter())
        .filter_map(Document::conversation)
        .collect();
    let texts: Vec<Text<'_>> = (texts.into_par_iter())
        .map(|document| {
            let (text, templated) = reading.text(document)?;
            Ok(Text { text, templated })
        })
        .collect::<Result<_, Error>>()?;
    let pieces = mixed_pieces(&texts, seed);
    let mut texts = Texts::new(*reading, &pieces);
    let body = cutter.seq_len - cutter.prefix.len();
    let wanted = body.saturating_mul(cutter.num_samples);
    let mut seen = reading
        .prompts
        .map(|prompts| Seen::new(&chats, reading, prompts, body, wanted, seed))
        .transpose()?;
    // Where there are few, they are spread over all windows.
    let n_seen = seen.as_ref().map_or(0, Seen::n_tokens);
    let supply = n_seen as f64 / wanted as f64;
    let (mut n_used, mut n_of_images, mut n_given) = (0, 0, 0);
    let mut text_left = true;
    while !cutter.is_full() {
        let image_due = n_of_images as f64 <= IMAGE_SHARE * n_used as f64
            && n_given as f64 <= supply * n_used as f64;
        if (image_due || !text_left)
            && let Some(sample) = seen.as_mut().and_then(Seen::next)
        {
            let used = cutter.add(sample);
            n_given += sample.ids.len();
            n_of_images += used;
            n_used += used;
        } else if let Some(sample) = texts.next()? {
            n_used += cutter.add(&sample);
        } else if text_left {
            text_left = false;
        } else {
            break;
        }
    }
    Ok(seen.map_or(0, |seen| seen.n_left_out))
}

/// Windows that are being filled.
struct Cutter<'a> {
    prefix: &'a [u32],
    seq_len: usize,
    num_samples: usize,
    ids: Vec<Vec<u32>>,
    images: Vec<Vec<WindowImage>>,
    /// The window that is not full yet, with its images.
    open: Vec<u32>,
    open_images: Vec<WindowImage>,
}

impl<'a> Cutter<'a> {
    fn new(prefix: &'a [u32], seq_len: usize, num_samples: usize) -> Self {
        Self {
            prefix,
            seq_len,
            num_samples,
            ids: Vec::new(),
            images: Vec::new(),
            open: prefix.to_vec(),
            open_images: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.ids.len() >= self.num_samples
    }

    /// Writes `sample` on, into as many windows as it takes; the tokens that found a place. What is left is dropped where
    /// a window ends within an image, or was the last.
    fn add(&mut self, sample: &Sample) -> usize {
        let mut from = 0;
        while from < sample.ids.len() && !self.is_full() {
            let room = self.seq_len - self.open.len();
            let to = sample.ids.len().min(from + room);
            for image in &sample.images {
                let here = (image.positions.iter()).filter(|at| (from..to).contains(*at));
                if let Some(first) = here.clone().next() {
                    self.open_images.push(WindowImage {
                        source: image.source.clone(),
                        start: self.open.len() + first - from,
                        n_tokens: here.count(),
                    });
                }
            }
            self.open.extend(&sample.ids[from..to]);
            if self.open.len() == self.seq_len {
                let full = std::mem::replace(&mut self.open, self.prefix.to_vec());
                self.ids.push(full);
                self.images.push(std::mem::take(&mut self.open_images));
            }
            from = to;
            if sample.images.iter().any(|image| image.holds(from)) {
                break;
            }
        }
        from
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::image_source::testing::png;
    use super::super::samples::testing::Prompts;
    use super::super::tokenizer::testing::directory;
    use super::super::{ChatTemplate, Message, Origin, Part};
    use super::*;

    fn words(range: std::ops::Range<usize>) -> String {
        let words: Vec<String> = range.map(|n| format!("w{}", n % 1000)).collect();
        words.join(" ")
    }

    #[test]
    fn one_text_is_cut_from_its_start() {
        let text = [Document::Text(words(0..103))];
        let plain = Tokenizer::open(directory(&[], &[]).path()).unwrap();
        let found = windows(&text, &Reading::plain(&plain), 10, 10, 7).unwrap();
        assert_eq!((found.ids.len(), found.requested), (10, 10));
        assert_eq!(found.ids.concat(), (3..103).collect::<Vec<u32>>());
        let bos = Tokenizer::open(directory(&["<bos>"], &["<eos>"]).path()).unwrap();
        let found = windows(&text, &Reading::plain(&bos), 10, 3, 7).unwrap();
        assert_eq!(found.ids[0], [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(found.ids[2], [1, 21, 22, 23, 24, 25, 26, 27, 28, 29]);
        assert_eq!(found.n_tokens(), 30);
    }

    #[test]
    fn reading_stops_where_enough_was_read() {
        let tokenizer = Tokenizer::open(directory(&[], &[]).path()).unwrap();
        // 40 bytes a token: the first head is too short, and cuts a multi-byte character somewhere.
        let mut text = words(0..100_000).replace(' ', &"\u{3000}".repeat(12));
        let whole = tokenizer.encode(&text).unwrap();
        assert_eq!(whole.len(), 100_000);
        assert_eq!(
            stream(&text, &tokenizer, 2_000).unwrap(),
            whole[..2_000].to_vec()
        );
        text.truncate(words(0..10).len());
        assert!(stream(&text, &tokenizer, 2_000).unwrap().len() < 10);
    }

    /// tests/golden/generate/calibration.py, tokenizers 0.23.3. The Python side encodes the whole text, this side only the
    /// head it needs; ids must be equal.
    #[test]
    fn windows_equal_those_of_the_python_package() {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/calibration");
        let golden = std::fs::read_to_string(folder.join("windows.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
        let expected: Vec<Vec<u32>> = serde_json::from_value(golden["windows"].clone()).unwrap();
        let seq_len = golden["seq_len"].as_u64().unwrap() as usize;
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let text = super::super::load(
            Some(&folder.join("text.txt")),
            super::super::Images::Dropped,
        )
        .unwrap();
        let needed = (seq_len - 1) * expected.len() + CUT_MARGIN;
        assert!(needed * BYTES_PER_TOKEN < text[0].text().len() / 2);
        let found = windows(
            &text,
            &Reading::plain(&tokenizer),
            seq_len,
            expected.len(),
            0,
        )
        .unwrap();
        assert!(found.ids == expected);
    }

    #[test]
    fn too_little_text_is_refused_with_numbers() {
        let tokenizer = Tokenizer::open(directory(&["<bos>"], &[]).path()).unwrap();
        let text = [Document::Text(words(0..80))];
        let fewer = windows(&text, &Reading::plain(&tokenizer), 11, 64, 0).unwrap();
        assert_eq!((fewer.ids.len(), fewer.requested), (8, 64));
        let error = windows(&text, &Reading::plain(&tokenizer), 12, 64, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "too little calibration text: 80 tokens found, 88 needed for 8 windows of 12; \
             give more text, or lower --seq-len or --num-samples"
        );
        assert!(windows(&text, &Reading::plain(&tokenizer), 81, 1, 0).is_ok());
        let error = windows(&text, &Reading::plain(&tokenizer), 82, 1, 0).unwrap_err();
        assert!(matches!(
            error,
            Error::TooLittleText {
                found: 80,
                needed: 81,
                windows: 1,
                ..
            }
        ));
        let error = windows(&text, &Reading::plain(&tokenizer), 1, 1, 0).unwrap_err();
        assert!(matches!(
            error,
            Error::SeqLen {
                seq_len: 1,
                prefix: 1
            }
        ));
    }

    #[test]
    fn a_set_is_mixed() {
        let tokenizer = Tokenizer::open(directory(&[], &[]).path()).unwrap();
        // Words below 300: a long document; below 600: one of a fifth of its length; below 900: short ones, as much again.
        let lines = |from: usize, count: usize| {
            let line = |n: usize| words(from + n % 290..from + n % 290 + 10) + "\n\n";
            (0..count).map(line).collect::<String>()
        };
        let mut documents = vec![
            Document::Text(lines(0, 8_000)),
            Document::Text(lines(300, 1_600)),
        ];
        documents.extend((0..40).map(|n| Document::Text(lines(600 + n, 40))));
        let found = windows(&documents, &Reading::plain(&tokenizer), 512, 32, 1).unwrap();
        assert_eq!(found.ids.len(), 32);
        let share = |ids: &[Vec<u32>], from: u32| {
            let all = ids.concat();
            let own = all
                .iter()
                .filter(|&&id| (from + 3..from + 303).contains(&id));
            own.count() as f64 / all.len() as f64
        };
        // The square roots of 5 to 1 to 1.
        for (from, expected) in [(0, 0.53), (300, 0.235), (600, 0.235)] {
            let found = share(&found.ids, from);
            assert!((found - expected).abs() < 0.08, "{from}: {found}");
        }
        let again = |seed| windows(&documents, &Reading::plain(&tokenizer), 512, 32, seed).unwrap();
        assert!(again(1) == found);
        assert!(again(2) != found);
    }

    /// Conversations of `n` images, `width` by 2 pixels, with some words; and the windows that are cut from them.
    fn seeing(n: usize, width: u32, words: &str) -> Vec<Document> {
        let conversation = |line: usize| {
            let source = ImageSource::Bytes(png(width, 2).into());
            let parts = vec![Part::Image(source), Part::Text(words.into())];
            let role = "w1".to_owned();
            Document::Messages(Conversation {
                origin: Origin {
                    path: "x.jsonl".into(),
                    line: Some(line + 1),
                },
                messages: vec![Message { role, parts }],
                built_in: false,
            })
        };
        (0..n).map(conversation).collect()
    }

    #[test]
    fn a_window_tells_where_its_images_are() {
        let tokenizer = Tokenizer::open(directory(&["<bos>"], &[]).path()).unwrap();
        let reading = Reading {
            prompts: Some(&Prompts),
            ..Reading::plain(&tokenizer)
        };
        // "user:" is unknown (0), then 905, 903 x 5, 904, 905 and w5 w6: 11 tokens a conversation.
        let documents = seeing(6, 20, "w5 w6");
        let one = [0, 905, 903, 903, 903, 903, 903, 904, 905, 8, 9];
        let found = windows(&documents, &reading, 16, 3, 0).unwrap();
        // 15 tokens: one conversation and 4 tokens of the next, cut after 2 of its image tokens; its rest is dropped.
        let window = [&[1], &one[..], &one[..4]].concat();
        assert_eq!(found.ids, [window.clone(), window.clone(), window]);
        for images in &found.images {
            let places: Vec<_> = images.iter().map(|i| (i.start, i.n_tokens)).collect();
            assert_eq!(places, [(3, 5), (14, 2)]);
        }
        // 20 tokens: the cut falls behind the image, so the rest begins the next window.
        let found = windows(&documents, &reading, 21, 2, 0).unwrap();
        assert_eq!(found.ids[0], [&[1], &one[..], &one[..9]].concat());
        assert_eq!(found.ids[1][..4], [1, 8, 9, 0]);
        assert_eq!(found.images[1][0].start, 5);
        // 13 tokens: the cut falls before the first image token, where a window would begin with it.
        let found = windows(&documents, &reading, 14, 2, 0).unwrap();
        assert_eq!(found.ids[1][..4], [1, 0, 905, 903]);
        assert_eq!(found.images[0].len(), 1);
    }

    #[test]
    fn half_of_the_tokens_are_of_images() {
        let tokenizer = Tokenizer::open(directory(&[], &[]).path()).unwrap();
        let reading = Reading {
            prompts: Some(&Prompts),
            ..Reading::plain(&tokenizer)
        };
        let share = |documents: &[Document]| {
            let found = windows(documents, &reading, 256, 64, 3).unwrap();
            assert_eq!((found.ids.len(), found.images.len()), (64, 64));
            for (ids, images) in found.ids.iter().zip(&found.images) {
                // What begins the window is no image, and each is where it is said to be.
                assert_ne!(ids[0], 903);
                let named: usize = images.iter().map(|image| image.n_tokens).sum();
                assert_eq!(named, ids.iter().filter(|&&id| id == 903).count());
                assert!(images.iter().all(|image| ids[image.start] == 903));
            }
            let all = found.ids.concat();
            all.iter().filter(|&&id| id == 903).count() as f64 / all.len() as f64
        };
        let mut documents: Vec<Document> = (0..200)
            .map(|n| Document::Text(words(n..n + 100)))
            .collect();
        documents.extend(seeing(100, 360, "w5"));
        // 90 of 95 tokens of a conversation, and what is dropped where one is cut.
        let found = share(&documents);
        assert!((found - 0.47).abs() < 0.05, "{found}");
        // 10 conversations four times are 3800 of 16384 tokens, some of which are dropped where one is cut.
        documents.truncate(210);
        let found = share(&documents);
        assert!((found - 0.19).abs() < 0.03, "{found}");
        let spread = windows(&documents, &reading, 256, 64, 3).unwrap();
        assert!(spread.images.chunks(8).all(|some| some.concat().len() > 2));
        // Without text all of them come, and no more.
        let few = windows(&documents[200..], &reading, 256, 64, 3).unwrap();
        assert_eq!(few.ids.len(), 13);
        let blind = windows(&documents, &Reading::plain(&tokenizer), 256, 64, 3).unwrap();
        assert!(blind.images.iter().all(Vec::is_empty));
        assert!(!blind.ids.concat().contains(&903));
    }

    #[test]
    fn a_conversation_longer_than_a_window_names_the_length_that_it_needs() {
        let tokenizer = Tokenizer::open(directory(&["<bos>"], &[]).path()).unwrap();
        let reading = Reading {
            prompts: Some(&Prompts),
            ..Reading::plain(&tokenizer)
        };
        let mut documents = seeing(3, 20, "w5 w6");
        documents.extend(seeing(4, 80, "w5 w6").pop());
        let error = windows(&documents, &reading, 20, 2, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "x.jsonl:4: 26 tokens with its images, and --seq-len 20 has room for 19; \
             --seq-len 27 holds it, or give smaller images or fewer in a conversation"
        );
        assert!(windows(&documents, &reading, 27, 1, 0).is_ok());
        // What is built in goes without the long one, and is refused where nothing is short enough.
        for document in &mut documents {
            if let Document::Messages(chat) = document {
                chat.built_in = true;
            }
        }
        let found = windows(&documents, &reading, 20, 2, 0).unwrap();
        assert_eq!((found.ids.len(), found.n_left_out), (2, 1));
        let error = windows(&documents, &reading, 11, 2, 0).unwrap_err();
        assert!(
            error.to_string().contains("--seq-len 12 holds it"),
            "{error}"
        );
    }

    #[test]
    fn what_a_template_wrote_is_not_joined_by_blank_lines() {
        let model = directory(&["<bos>"], &[]);
        let template = "{{ '<bos>' }}{% for m in messages %} {{ m.content }}{% endfor %} <eos> ";
        std::fs::write(model.path().join("chat_template.jinja"), template).unwrap();
        let tokenizer = Tokenizer::open(model.path()).unwrap();
        let template = ChatTemplate::open(model.path()).unwrap().unwrap();
        let reading = Reading {
            template: Some(&template),
            ..Reading::plain(&tokenizer)
        };
        let documents = seeing(4, 8, "w5 w6");
        let found = windows(&documents, &reading, 7, 2, 0).unwrap();
        assert_eq!(found.ids, vec![vec![1, 8, 9, 2, 8, 9, 2]; 2]);
    }
}
