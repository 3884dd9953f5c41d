//! Texts in pieces, and the order in which the pieces of a set come.

use std::borrow::Cow;

/// Size in bytes at which a document of a set is divided: a paragraph's end is looked for up to twice that far.
const PIECE: usize = 4096;

/// A text of a set.
pub(super) struct Text<'a> {
    pub text: Cow<'a, str>,
    /// Written by a chat template: its white space means something, and it stays in one piece.
    pub templated: bool,
}

/// A part of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub text: &'a str,
    pub templated: bool,
}

/// The pieces of all texts. A text of several pieces is a stratum, all others together are one. Each stratum's pieces
/// are shuffled, and the strata interleaved at rates that go with the square roots of their sizes: in proportion, a few
/// windows would hold only the largest; in equal parts, as much of a page as of a library. Nothing is lost: the largest
/// come last alone.
pub(super) fn mixed_pieces<'a>(texts: &'a [Text<'_>], seed: u64) -> Vec<Piece<'a>> {
    let mut random = SplitMix64(seed);
    let mut strata = Vec::new();
    let mut short = Vec::new();
    for Text { text, templated } in texts {
        let templated = *templated;
        let found = if templated {
            vec![&**text]
        } else {
            pieces(text)
        };
        let mut found: Vec<Piece<'_>> = (found.into_iter())
            .map(|text| Piece { text, templated })
            .collect();
        if found.len() > 1 {
            strata.push(found);
        } else {
            short.append(&mut found);
        }
    }
    strata.push(short);
    let mut placed: Vec<(f64, Piece<'_>)> = Vec::new();
    for stratum in &mut strata {
        random.shuffle(stratum);
        let size: usize = stratum.iter().map(|piece| piece.text.len()).sum();
        let mut before = 0;
        for piece in stratum {
            let len = piece.text.len();
            let middle = before as f64 + len as f64 / 2.0;
            placed.push((middle / (size as f64).sqrt(), *piece));
            before += len;
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
pub(super) fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators": the same order on every machine.
pub(super) struct SplitMix64(pub u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let pick = (u128::from(self.next()) * (last as u128 + 1)) >> 64;
            items.swap(last, pick as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(range: std::ops::Range<usize>) -> String {
        let words: Vec<String> = range.map(|n| format!("w{}", n % 1000)).collect();
        words.join(" ")
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

    #[test]
    fn what_a_template_wrote_stays_as_it_is() {
        let text = format!("<s> {}\n", "word \n\n".repeat(4_000));
        let texts = [true, false].map(|templated| Text {
            text: text.as_str().into(),
            templated,
        });
        let (whole, cut): (Vec<_>, Vec<_>) =
            (mixed_pieces(&texts, 0).into_iter()).partition(|piece| piece.templated);
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].text, text);
        assert!(cut.len() > 3);
    }
}
