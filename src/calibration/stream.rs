//! The order in which texts and conversations with images reach the windows.

use std::collections::VecDeque;

use super::mixture::{Piece, SplitMix64};
use super::samples::Sample;
use super::{Conversation, Error, ImagePrompts, Reading};

/// Share of the tokens that comes from conversations with images, where there are enough of them: a model that sees has
/// to stay as good at text as at images.
pub(super) const IMAGE_SHARE: f64 = 0.5;
/// How often a conversation with images comes at most. Where there are few, the statistics would be those of a handful
/// of images however often they came.
pub(super) const IMAGE_ROUNDS: usize = 4;
/// Pieces that are encoded together, in parallel.
const BATCH: usize = 64;

/// The pieces of a set as tokens, in their order.
pub(super) struct Texts<'a> {
    reading: Reading<'a>,
    pieces: &'a [Piece<'a>],
    ready: VecDeque<Sample>,
}

impl<'a> Texts<'a> {
    pub(super) fn new(reading: Reading<'a>, pieces: &'a [Piece<'a>]) -> Self {
        Self {
            reading,
            pieces,
            ready: VecDeque::new(),
        }
    }

    /// The next piece, encoded in batches as they are wanted.
    pub(super) fn next(&mut self) -> Result<Option<Sample>, Error> {
        if self.ready.is_empty() {
            let (batch, rest) = self.pieces.split_at(BATCH.min(self.pieces.len()));
            self.pieces = rest;
            let ended = |piece: &Piece<'_>| {
                let end = if piece.templated { "" } else { "\n\n" };
                format!("{}{end}", piece.text)
            };
            let ended: Vec<String> = batch.iter().map(ended).collect();
            let ended: Vec<&str> = ended.iter().map(String::as_str).collect();
            let encoded = self.reading.tokenizer.encode_batch(&ended)?;
            for (piece, mut ids) in batch.iter().zip(encoded) {
                if piece.templated {
                    ids = self.reading.without_prefix(ids);
                }
                let images = Vec::new();
                self.ready.push_back(Sample { ids, images });
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// Conversations with images, each of them once before any comes again.
pub(super) struct Seen {
    pool: Vec<Sample>,
    order: Vec<usize>,
    n_given: usize,
    /// Built-in conversations that no window holds.
    pub n_left_out: usize,
    random: SplitMix64,
}

impl Seen {
    /// Encodes `chats` in an order that `seed` decides, as many as give `wanted` tokens. Those that are built in and longer
    /// than a window's `body` are left out, as long as others are not.
    ///
    /// # Errors
    /// A conversation that is too long: the longest of the user's own, or the shortest of the built-in ones; what
    /// [`Reading::sample`] finds.
    pub(super) fn new(
        chats: &[&Conversation],
        reading: &Reading<'_>,
        prompts: &dyn ImagePrompts,
        body: usize,
        wanted: usize,
        seed: u64,
    ) -> Result<Self, Error> {
        let mut random = SplitMix64(seed);
        let mut shuffled = chats.to_vec();
        random.shuffle(&mut shuffled);
        let mut pool: Vec<Sample> = Vec::new();
        let mut too_long: Vec<(usize, &Conversation)> = Vec::new();
        let mut n_tokens = 0;
        for chat in shuffled {
            if n_tokens >= wanted {
                break;
            }
            let sample = reading.sample(chat, prompts)?;
            let len = sample.ids.len();
            if len > body {
                too_long.push((len, chat));
            } else {
                n_tokens += len;
                pool.push(sample);
            }
        }
        let own = too_long.iter().filter(|(_, chat)| !chat.built_in);
        let mut refused = own.max_by_key(|(len, _)| *len);
        if pool.is_empty() && refused.is_none() {
            refused = too_long.iter().min_by_key(|(len, _)| *len);
        }
        if let Some((len, chat)) = refused {
            let n_prefix = reading.tokenizer.prefix().len();
            return Err(chat.error(format!(
                "{len} tokens with its images, and --seq-len {} has room for {body}; \
                 --seq-len {} holds it, or give smaller images or fewer in a conversation",
                body + n_prefix,
                len + n_prefix
            )));
        }
        let order = (0..pool.len()).collect();
        Ok(Self {
            pool,
            order,
            n_given: 0,
            n_left_out: too_long.len(),
            random,
        })
    }

    /// Tokens of all conversations in all rounds.
    pub(super) fn n_tokens(&self) -> usize {
        let once: usize = self.pool.iter().map(|sample| sample.ids.len()).sum();
        once * IMAGE_ROUNDS
    }

    pub(super) fn next(&mut self) -> Option<&Sample> {
        let n = self.pool.len();
        if n == 0 || self.n_given == n * IMAGE_ROUNDS {
            return None;
        }
        let at = self.n_given % n;
        if at == 0 && self.n_given > 0 {
            self.random.shuffle(&mut self.order);
        }
        self.n_given += 1;
        self.pool.get(self.order[at])
    }
}
