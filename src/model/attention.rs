//! Causal attention over grouped heads, with an optional window and an optional cache of earlier keys and values.

use super::Error;
use tch::{Kind, Tensor};

/// Keys and values of the tokens that one layer has seen, for generation.
#[derive(Debug, Default)]
pub struct KvCache {
    /// `[B, n_kv_heads, S, head_dim]` each; with a window only the positions that a next token can see.
    entries: Option<(Tensor, Tensor)>,
    n_seen: usize,
}

impl KvCache {
    /// An empty cache for one layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens seen: the position of the next one.
    pub fn len(&self) -> usize {
        self.n_seen
    }

    /// Whether no token has been seen.
    pub fn is_empty(&self) -> bool {
        self.n_seen == 0
    }

    /// Adds keys and values `[B, n_kv_heads, T, head_dim]`; returns all that these T tokens may look at.
    fn append(
        &mut self,
        key: Tensor,
        value: Tensor,
        window: Option<usize>,
    ) -> Result<(Tensor, Tensor), Error> {
        self.n_seen += key.size()[2] as usize;
        let (key, value) = match self.entries.take() {
            None => (key, value),
            Some((keys, values)) => (
                Tensor::f_cat(&[keys, key], 2)?,
                Tensor::f_cat(&[values, value], 2)?,
            ),
        };
        // The next token sees itself and window - 1 earlier ones.
        let n_entries = key.size()[2];
        let n_kept = window.map_or(n_entries, |window| n_entries.min(window as i64 - 1));
        let kept = |entries: &Tensor| entries.f_narrow(2, n_entries - n_kept, n_kept);
        self.entries = Some((kept(&key)?, kept(&value)?));
        Ok((key, value))
    }
}

/// `query` `[B, n_heads, T, head_dim]`, `key` and `value` `[B, n_kv_heads, T, head_dim]`; the result is
/// `[B, T, n_heads * head_dim]`. With `window`, a token sees itself and `window - 1` earlier ones.
pub(super) fn attention(
    query: &Tensor,
    key: Tensor,
    value: Tensor,
    window: Option<usize>,
    cache: Option<&mut KvCache>,
) -> Result<Tensor, Error> {
    let (key, value) = match cache {
        None => (key, value),
        Some(cache) => cache.append(key, value, window)?,
    };
    let size = query.size();
    let (n_queries, n_keys) = (size[2], key.size()[2]);
    let window = window
        .map(|window| window as i64)
        .filter(|&window| window < n_keys);
    let is_causal = n_queries == n_keys && window.is_none();
    let mask = if is_causal || (n_queries == 1 && window.is_none()) {
        None
    } else {
        Some(mask(n_queries, n_keys, window, query.device())?)
    };
    let mixed = Tensor::f_scaled_dot_product_attention(
        query,
        &key,
        &value,
        mask,
        0.0,
        is_causal,
        None,
        size[1] != key.size()[1],
    )?;
    Ok(mixed
        .f_transpose(1, 2)?
        .f_reshape([size[0], n_queries, size[1] * size[3]])?)
}

/// `[n_queries, n_keys]` bool, true where the query may look; the last query stands at the last key.
fn mask(
    n_queries: i64,
    n_keys: i64,
    window: Option<i64>,
    device: tch::Device,
) -> Result<Tensor, Error> {
    let own = n_keys - n_queries;
    let past = Tensor::f_ones([n_queries, n_keys], (Kind::Bool, device))?.f_tril(own)?;
    Ok(match window {
        None => past,
        Some(window) => past.f_triu(own - window + 1)?,
    })
}
