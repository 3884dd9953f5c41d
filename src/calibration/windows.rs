//! Windows of token ids, cut from documents.

use std::borrow::Cow;

use super::{Document, Error, Tokenizer};

/// Fewer windows than this are refused, unless fewer were asked for: too little to estimate anything from.
const MIN_WINDOWS: usize = 8;
/// Text that one token is taken to need at most, in bytes; where it is more, a longer head of the text is read.
const BYTES_PER_TOKEN: usize = 8;
/// Tokens before a cut in a text that the cut may have changed. Pre-tokenizers read from left to right and look
/// ahead one run of characters, so it is far fewer.
const CUT_MARGIN: usize = 1024;
/// Size in bytes at which a document of a set is divided: a paragraph's end is looked for up to twice that far.
const PIECE: usize = 4096;
/// Pieces that are encoded together, in parallel.
const BATCH: usize = 64;

/// Calibration samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Token ids, each exactly `seq_len` long and beginning with what the tokenizer puts before a text.
    pub ids: Vec<Vec<u32>>,
    /// How many were asked for. There may be fewer; the caller tells.
    pub requested: usize,
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
/// documents, the long ones are divided at ends of paragraphs into pieces; the pieces are shuffled by `seed` so that
/// each long document, and the short ones together, have a share in the first windows as in the later ones; they are
/// joined by blank lines and cut. No special token stands between pieces: an instruct model's end of turn would be out
/// of place there.
///
/// # Errors
/// [`Error::TooLittleText`] where the text gives fewer than `num_samples` and fewer than 8 windows.
pub fn windows(
    documents: &[Document],
    tokenizer: &Tokenizer,
    seq_len: usize,
    num_samples: usize,
    seed: u64,
) -> Result<Windows, Error> {
    let prefix = tokenizer.prefix();
    let body = seq_len.saturating_sub(prefix.len());
    if body == 0 {
        let prefix = prefix.len();
        return Err(Error::SeqLen { seq_len, prefix });
    }
    let wanted = body.saturating_mul(num_samples);
    let tokens = match documents {
        [Document::Text(text)] => stream(text, tokenizer, wanted)?,
        _ => mixture(documents, tokenizer, wanted, seed)?,
    };
    let ids: Vec<Vec<u32>> = tokens
        .chunks_exact(body)
        .take(num_samples)
        .map(|chunk| [prefix, chunk].concat())
        .collect();
    let least = num_samples.clamp(1, MIN_WINDOWS);
    if ids.len() < least {
        return Err(Error::TooLittleText {
            found: tokens.len(),
            needed: body.saturating_mul(least),
            windows: least,
            seq_len,
        });
    }
    Ok(Windows {
        ids,
        requested: num_samples,
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

/// At least `wanted` tokens (all where there are fewer) of the documents' pieces, mixed.
fn mixture(
    documents: &[Document],
    tokenizer: &Tokenizer,
    wanted: usize,
    seed: u64,
) -> Result<Vec<u32>, Error> {
    let texts: Vec<Cow<'_, str>> = documents.iter().map(Document::text).collect();
    let mut tokens = Vec::new();
    for batch in mixed_pieces(&texts, seed).chunks(BATCH) {
        let ended: Vec<String> = batch.iter().map(|piece| format!("{piece}\n\n")).collect();
        let ended: Vec<&str> = ended.iter().map(String::as_str).collect();
        for ids in tokenizer.encode_batch(&ended)? {
            tokens.extend(ids);
        }
        if tokens.len() >= wanted {
            break;
        }
    }
    Ok(tokens)
}

/// The pieces of all texts. A text of several pieces is a stratum, all others together are one. Each stratum's pieces
/// are shuffled, and the strata interleaved at rates that go with the square roots of their sizes: in proportion, a few
/// windows would hold only the largest; in equal parts, as much of a page as of a library. Nothing is lost: the largest
/// come last alone.
fn mixed_pieces<'a>(texts: &'a [Cow<'_, str>], seed: u64) -> Vec<&'a str> {
    let mut random = SplitMix64(seed);
    let mut strata = Vec::new();
    let mut short = Vec::new();
    for text in texts {
        let mut pieces = pieces(text);
        if pieces.len() > 1 {
            strata.push(pieces);
        } else {
            short.append(&mut pieces);
        }
    }
    strata.push(short);
    let mut placed: Vec<(f64, &str)> = Vec::new();
    for stratum in &mut strata {
        random.shuffle(stratum);
        let size: usize = stratum.iter().map(|piece| piece.len()).sum();
        let mut before = 0;
        for piece in stratum {
            let middle = before as f64 + piece.len() as f64 / 2.0;
            placed.push((middle / (size as f64).sqrt(), piece));
            before += piece.len();
        }
    }
    placed.sort_by(|a, b| a.0.total_cmp(&b.0));
    placed.into_iter().map(|(_, piece)| piece).collect()
}

/// `text` in pieces of about [`PIECE`] bytes, without the white space between them.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while rest.len() > 2 * PIECE {
        let from = floor_char_boundary(rest, PIECE);
        let to = floor_char_boundary(rest, 2 * PIECE);
        let found = rest[from..to]
            .find("\n\n")
            .or_else(|| rest[from..to].find('\n'));
        let (piece, tail) = rest.split_at(found.map_or(to, |at| from + at));
        pieces.push(piece.trim_end());
        rest = tail.trim_start();
    }
    if !rest.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// The largest character boundary of `text` that is not beyond `at`.
fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators": the same order on every machine.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let pick = (u128::from(self.next()) * (last as u128 + 1)) >> 64;
            items.swap(last, pick as usize);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::tokenizer::testing::directory;
    use super::*;

    fn words(range: std::ops::Range<usize>) -> String {
        let words: Vec<String> = range.map(|n| format!("w{}", n % 1000)).collect();
        words.join(" ")
    }

    #[test]
    fn one_text_is_cut_from_its_start() {
        let text = [Document::Text(words(0..103))];
        let plain = Tokenizer::open(directory(&[], &[]).path()).unwrap();
        let found = windows(&text, &plain, 10, 10, 7).unwrap();
        assert_eq!((found.ids.len(), found.requested), (10, 10));
        assert_eq!(found.ids.concat(), (3..103).collect::<Vec<u32>>());
        let bos = Tokenizer::open(directory(&["<bos>"], &["<eos>"]).path()).unwrap();
        let found = windows(&text, &bos, 10, 3, 7).unwrap();
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
        let text = super::super::load(Some(&folder.join("text.txt"))).unwrap();
        let needed = (seq_len - 1) * expected.len() + CUT_MARGIN;
        assert!(needed * BYTES_PER_TOKEN < text[0].text().len() / 2);
        let found = windows(&text, &tokenizer, seq_len, expected.len(), 0).unwrap();
        assert!(found.ids == expected);
    }

    #[test]
    fn too_little_text_is_refused_with_numbers() {
        let tokenizer = Tokenizer::open(directory(&["<bos>"], &[]).path()).unwrap();
        let text = [Document::Text(words(0..80))];
        let fewer = windows(&text, &tokenizer, 11, 64, 0).unwrap();
        assert_eq!((fewer.ids.len(), fewer.requested), (8, 64));
        let error = windows(&text, &tokenizer, 12, 64, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "too little calibration text: 80 tokens found, 88 needed for 8 windows of 12; \
             give more text, or lower --seq-len or --num-samples"
        );
        assert!(windows(&text, &tokenizer, 81, 1, 0).is_ok());
        let error = windows(&text, &tokenizer, 82, 1, 0).unwrap_err();
        assert!(matches!(
            error,
            Error::TooLittleText {
                found: 80,
                needed: 81,
                windows: 1,
                ..
            }
        ));
        let error = windows(&text, &tokenizer, 1, 1, 0).unwrap_err();
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
        let found = windows(&documents, &tokenizer, 512, 32, 1).unwrap();
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
        let again = |seed| windows(&documents, &tokenizer, 512, 32, seed).unwrap();
        assert!(again(1) == found);
        assert!(again(2) != found);
    }

    #[test]
    fn pieces_lose_nothing_but_white_space() {
        let paragraphs: Vec<String> = (0..200).map(|n| words(n * 50..n * 50 + 50)).collect();
        for text in [
            paragraphs.join("\n\n"),
            paragraphs.join("\n"),
            paragraphs.join(" "),
            "\u{1f600}é".repeat(9_000),
        ] {
            let pieces = pieces(&text);
            assert!(pieces.len() > 3);
            assert!(pieces.iter().all(|piece| piece.len() <= 2 * PIECE));
            let bare = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(bare(&pieces.concat()), bare(&text));
        }
        assert!(pieces(" \n ").is_empty());
    }
}
