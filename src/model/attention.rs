//! Causal attention over grouped heads, of all earlier tokens, of those in a window or in a chunk, with an optional cache of
//! earlier keys and values.

use half::bf16;
use tch::{Device, Kind, Tensor};

use super::Error;
use super::places::Images;
use super::vision::Sight;
use crate::kernels::{self, attention::Problem};
use crate::tensor::{Exclusive, bf16_slice, f32_slice, on_cpu_in_bf16};

/// What generation needs of the tokens that one layer has seen: keys and values, or another mixer's state.
#[derive(Debug, Default)]
pub struct KvCache {
    /// `[B, n_kv_heads, S, head_dim]` each (values may be wider or narrower); only the positions that a next token can see.
    entries: Option<(Tensor, Tensor)>,
    n_seen: usize,
    /// The last tokens that another mixer's convolution read, `[B, kernel - 1, channels]`.
    pub(super) convolved: Option<Tensor>,
    /// Its recurrent state, `[B, n_heads, state_dim, head_dim]`.
    pub(super) state: Option<Tensor>,
}

impl KvCache {
    /// An empty cache for one layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens that attention has seen: the position of the next one.
    pub fn len(&self) -> usize {
        self.n_seen
    }

    /// Whether attention has seen no token.
    pub fn is_empty(&self) -> bool {
        self.n_seen == 0
    }

    /// Counts tokens whose keys and values another layer's cache has.
    pub(super) fn pass(&mut self, n_tokens: i64) {
        self.n_seen += n_tokens as usize;
    }

    /// Forgets keys and values that no later token sees; they count as seen.
    fn forget(&mut self) {
        self.entries = None;
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

/// Keys and values `[B, T, n_kv_heads, head_dim]` after those that `cache` holds of earlier tokens: all that these T tokens
/// may look at.
pub(super) fn remember(
    cache: Option<&mut KvCache>,
    key: Tensor,
    value: Tensor,
    window: Option<usize>,
) -> Result<(Tensor, Tensor), Error> {
    let Some(cache) = cache else {
        return Ok((key, value));
    };
    let (key, value) = (key.f_transpose(1, 2)?, value.f_transpose(1, 2)?);
    let (key, value) = cache.append(key, value, window)?;
    Ok((key.f_transpose(1, 2)?, value.f_transpose(1, 2)?))
}

/// Queries that share a mask and a range of keys in libtorch. libtorch's CPU kernel computes whole blocks of 512 keys, masked or
/// not, so handing it only the keys that some query sees saves up to half of the time; much smaller blocks save no more.
const QUERY_BLOCK: i64 = 256;

/// How scores are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scores {
    /// A token sees itself and `window - 1` earlier ones.
    pub window: Option<usize>,
    /// A token sees only those of its own chunk, of so many positions.
    pub chunk: Option<usize>,
    /// What the products of queries and keys are multiplied by.
    pub scale: f64,
    /// `c` of `c tanh(score / c)`.
    pub softcap: Option<f64>,
    /// What the slopes are multiplied by at which scores fall with the distance of a key, where they fall.
    pub alibi: Option<f64>,
}

/// `query` is `[B, T, n_heads, head_dim]`, `key` `[B, T, n_kv_heads, head_dim]`, `value` `[B, T, n_kv_heads, value_dim]`; without
/// a cache there may be more keys and values than queries, of which the last stands at the last key. The result is `[B, T, n_heads * value_dim]`. `sinks` are `[n_heads]` float32: scores that take part in each token's softmax
/// and mix no value.
pub(super) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    scores: Scores,
    sinks: Option<&Tensor>,
    cache: Option<&mut KvCache>,
) -> Result<Tensor, Error> {
    let Scores {
        window, softcap, ..
    } = scores;
    if let Some(chunk) = scores.chunk {
        return by_chunks([query, key, value], scores, chunk, sinks, cache);
    }
    let falls = scores.alibi.is_some();
    let whole = cache.is_none() && key.size()[1] == query.size()[1];
    if on_cpu_in_bf16(query) && whole && softcap.is_none() && !falls {
        return by_kernel(query, key, value, scores, sinks);
    }
    let (head_dim, value_dim) = (query.size()[3], value.size()[3]);
    let by_steps = softcap.is_some() || sinks.is_some() || falls;
    let query = query.f_transpose(1, 2)?;
    let (key, value) = (key.f_transpose(1, 2)?, value.f_transpose(1, 2)?);
    let (key, value) = match cache {
        None => (key, value),
        Some(cache) => cache.append(key, value, window)?,
    };
    // libtorch's fast kernels want heads of one width; zeros change no product.
    let width = head_dim.max(value_dim);
    let widened = |x: Tensor| -> Result<Tensor, Error> {
        let missing = width - x.size()[3];
        Ok(if by_steps || missing == 0 {
            x
        } else {
            x.f_constant_pad_nd([0, missing])?
        })
    };
    let (query, key, value) = (widened(query)?, widened(key)?, widened(value)?);
    let n_queries = query.size()[2];
    // The last query stands at the last key.
    let n_earlier = key.size()[2] - n_queries;
    let window = window.map_or(i64::MAX, |window| window as i64);
    let fused = query.device() != Device::Cpu && n_earlier == 0 && window >= n_queries && !by_steps;
    let block = if fused { n_queries } else { QUERY_BLOCK };
    let mut mixed = Vec::new();
    for start in (0..n_queries).step_by(block as usize) {
        let len = block.min(n_queries - start);
        let end = n_earlier + start + len;
        let first = (end - len + 1).saturating_sub(window).max(0);
        let seen = |keys: &Tensor| keys.f_narrow(2, first, end - first);
        // Whether the kernel's own triangle is the mask: it begins at the first key.
        let is_causal = len == end - first && window >= len && !by_steps;
        let mask = (len > 1 && !is_causal)
            .then(|| mask(len, end - first, window, query.device()))
            .transpose()?;
        let query = query.f_narrow(2, start, len)?;
        let (key, value) = (seen(&key)?, seen(&value)?);
        let block = if by_steps {
            step_by_step(&query, &key, &value, mask.as_ref(), scores, sinks)?
        } else {
            Tensor::f_scaled_dot_product_attention(
                &query,
                &key,
                &value,
                mask,
                0.0,
                is_causal,
                Some(scores.scale),
                query.size()[1] != key.size()[1],
            )?
        };
        mixed.push(block.f_narrow(3, 0, value_dim)?.f_transpose(1, 2)?);
    }
    Ok(Tensor::f_cat(&mixed, 1)?.f_flatten(2, 3)?)
}

/// [`attention`] whose tokens see the later ones of their own image too.
pub(super) fn attention_within_images(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    scores: Scores,
    images: &Images,
) -> Result<Tensor, Error> {
    let n_tokens = query.size()[1];
    let device = query.device();
    let runs = &images.runs;
    let own = runs.f_unsqueeze(2)?.f_eq_tensor(&runs.f_unsqueeze(1)?)?;
    let own = own.f_logical_and(&runs.f_ge(0)?.f_unsqueeze(2)?)?;
    let before = mask(n_tokens, n_tokens, i64::MAX, device)?;
    let window = scores.window.map_or(i64::MAX, |window| window as i64);
    let everything = Tensor::f_ones([n_tokens, n_tokens], (Kind::Bool, device))?;
    let near = everything.f_triu(1i64.saturating_sub(window))?;
    let seen = if images.sight == Sight::WholeImage {
        before.f_logical_and(&near)?.f_logical_or(&own)?
    } else {
        own.f_logical_or(&before)?.f_logical_and(&near)?
    };
    let seen = seen.f_unsqueeze(1)?;
    let [query, key, value] = [query, key, value].map(|x| x.f_transpose(1, 2));
    let (query, key, value) = (query?, key?, value?);
    let mixed = if scores.softcap.is_some() {
        step_by_step(&query, &key, &value, Some(&seen), scores, None)?
    } else {
        let grouped = query.size()[1] != key.size()[1];
        let scale = Some(scores.scale);
        Tensor::f_scaled_dot_product_attention(
            &query,
            &key,
            &value,
            Some(seen),
            0.0,
            false,
            scale,
            grouped,
        )?
    };
    Ok(mixed.f_transpose(1, 2)?.f_flatten(2, 3)?)
}

/// [`attention`] whose chunks, of so many positions, know nothing of each other.
fn by_chunks(
    tensors: [&Tensor; 3],
    scores: Scores,
    chunk: usize,
    sinks: Option<&Tensor>,
    mut cache: Option<&mut KvCache>,
) -> Result<Tensor, Error> {
    let start = cache.as_ref().map_or(0, |cache| cache.len());
    let end = start + tensors[0].size()[1] as usize;
    let within = Scores {
        chunk: None,
        ..scores
    };
    let mut mixed = Vec::new();
    let mut first = start;
    while first < end {
        let next = end.min((first / chunk + 1) * chunk);
        if first.is_multiple_of(chunk)
            && let Some(cache) = &mut cache
        {
            cache.forget();
        }
        let part = |x: &Tensor| x.f_narrow(1, (first - start) as i64, (next - first) as i64);
        let [query, key, value] = tensors.map(part);
        let (query, key, value) = (query?, key?, value?);
        let cache = cache.as_deref_mut();
        mixed.push(attention(&query, &key, &value, within, sinks, cache)?);
        first = next;
    }
    Ok(Tensor::f_cat(&mixed, 1)?)
}

/// [`attention`] of bfloat16 tensors on the CPU.
fn by_kernel(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    scores: Scores,
    sinks: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let (query, key, value) = (
        query.f_contiguous()?,
        key.f_contiguous()?,
        value.f_contiguous()?,
    );
    let [n_rows, n_tokens, n_heads, head_dim] = <[i64; 4]>::try_from(query.size())
        .map(|size| size.map(|dim| dim as usize))
        .expect("four dimensions");
    let value_dim = value.size()[3] as usize;
    let problem = Problem {
        query: bf16_slice(&query),
        key: bf16_slice(&key),
        value: bf16_slice(&value),
        n_tokens,
        n_heads,
        n_kv_heads: key.size()[2] as usize,
        head_dim,
        value_dim,
        sinks: sinks.map(f32_slice),
        window: scores.window,
        scale: scores.scale as f32,
    };
    let mut mixed = Exclusive::<bf16>::zeros(&[n_rows, n_tokens, n_heads * value_dim])?;
    kernels::attention::attend(kernels::chosen(), &problem, mixed.values());
    Ok(mixed.into_tensor())
}

/// Attention in steps, because libtorch's kernels know neither caps nor sinks. `[B, H, T, head_dim]`.
fn step_by_step(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    scores: Scores,
    sinks: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let scale = scores.scale;
    let repeats = query.size()[1] / key.size()[1];
    let repeated = |x: &Tensor| x.f_repeat_interleave_self_int(repeats, 1, None);
    let mut products = query.f_matmul(&repeated(key)?.f_transpose(2, 3)?)?;
    let scaled = match scores.softcap {
        None => products.f_mul_scalar_(scale)?,
        Some(cap) => (products.f_mul_scalar_(scale / cap)?)
            .f_tanh_()?
            .f_mul_scalar_(cap)?,
    };
    let alibi = scores.alibi;
    let mut scores = scaled.f_to_kind(Kind::Float)?;
    if let Some(factor) = alibi {
        scores = scores.f_add_(&falling(&scores.size(), factor, scores.device())?)?;
    }
    if let Some(mask) = mask {
        let _ = scores.f_masked_fill_(&mask.f_logical_not()?, f64::NEG_INFINITY)?;
    }
    let n_keys = scores.size()[3];
    if let Some(sinks) = sinks {
        let [n_rows, n_heads, n_queries] = [0, 1, 2].map(|dim| scores.size()[dim]);
        let sinks = sinks.f_view([1, -1, 1, 1])?;
        let sinks = sinks.f_expand([n_rows, n_heads, n_queries, 1], false)?;
        scores = Tensor::f_cat(&[scores, sinks], 3)?;
    }
    let weights = scores.f_softmax(-1, Kind::Float)?.f_narrow(3, 0, n_keys)?;
    let weights = weights.f_to_kind(value.kind())?;
    Ok(weights.f_matmul(&repeated(value)?)?)
}

/// What scores of `size` `[B, H, queries, keys]` lose with the distance of the key: `[H, queries, keys]`; the last query
/// stands at the last key.
fn falling(size: &[i64], factor: f64, device: Device) -> Result<Tensor, Error> {
    let [n_heads, n_queries, n_keys] = [1, 2, 3].map(|dim| size[dim]);
    let slopes: Vec<f32> = (slopes(n_heads as usize).into_iter())
        .map(|slope| (slope * factor) as f32)
        .collect();
    let options = (Kind::Float, device);
    let keys = Tensor::f_arange(n_keys, options)?.f_view([1, -1])?;
    let queries = Tensor::f_arange_start(n_keys - n_queries, n_keys, options)?.f_view([-1, 1])?;
    let slopes = Tensor::f_from_slice(&slopes)?.f_to_device(device)?;
    Ok(keys.f_sub(&queries)?.f_mul(&slopes.f_view([-1, 1, 1])?)?)
}

/// The slopes of `n_heads` heads: powers of `2^(-8 / n)` for the power of two `n` that they reach, then odd powers of its
/// root.
fn slopes(n_heads: usize) -> Vec<f64> {
    let reached = 1 << n_heads.ilog2();
    let power = |exponent: f64| 2f64.powf(-8.0 * exponent / reached as f64);
    let whole = (1..=reached).map(|index| power(index as f64));
    let odd = (0..n_heads - reached).map(|index| power(index as f64 + 0.5));
    whole.chain(odd).collect()
}

/// `[n_queries, n_keys]` bool, true where a query may look; the last query stands at the last key.
fn mask(n_queries: i64, n_keys: i64, window: i64, device: Device) -> Result<Tensor, Error> {
    let own = n_keys - n_queries;
    let past = Tensor::f_ones([n_queries, n_keys], (Kind::Bool, device))?.f_tril(own)?;
    let oldest = (own + 1).saturating_sub(window);
    Ok(past.f_triu(oldest)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn uncapped(window: Option<usize>, head_dim: usize) -> Scores {
        Scores {
            window,
            chunk: None,
            scale: 1.0 / (head_dim as f64).sqrt(),
            softcap: None,
            alibi: None,
        }
    }

    #[test]
    fn masks_end_at_the_diagonal_and_begin_at_the_window() {
        let row = |mask: Tensor, row: i64| Vec::<bool>::try_from(mask.get(row)).unwrap();
        let seen = |window, query| row(mask(2, 5, window, Device::Cpu).unwrap(), query);
        assert_eq!(seen(i64::MAX, 0), [true, true, true, true, false]);
        assert_eq!(seen(i64::MAX, 1), [true; 5]);
        assert_eq!(seen(2, 0), [false, false, true, true, false]);
        assert_eq!(seen(2, 1), [false, false, false, true, true]);
        assert_eq!(seen(1, 1), [false, false, false, false, true]);
    }

    /// On views that are not contiguous; against libtorch in float32, and beside its own kernel for bfloat16.
    #[test]
    fn bf16_is_no_worse_than_libtorchs() {
        for (n_heads, n_kv_heads, window) in [(4, 4, None), (6, 2, None), (6, 2, Some(50))] {
            let random = |n_heads| {
                Tensor::randn([3, n_heads, 300, 64], (Kind::Float, Device::Cpu))
                    .to_kind(Kind::BFloat16)
                    .transpose(1, 2)
            };
            let tensors = [random(n_heads), random(n_kv_heads), random(n_kv_heads)];
            let attended = |kind, cache: Option<&mut KvCache>| {
                let [query, key, value] = tensors.each_ref().map(|x| x.to_kind(kind));
                attention(&query, &key, &value, uncapped(window, 64), None, cache).unwrap()
            };
            let expected = attended(Kind::Float, None).to_kind(Kind::Double);
            let found = attended(Kind::BFloat16, None);
            assert_eq!(
                (found.kind(), found.size()),
                (Kind::BFloat16, expected.size())
            );
            // With a cache libtorch computes.
            let libtorchs = attended(Kind::BFloat16, Some(&mut KvCache::new()));
            let [ours, libtorchs] = [found, libtorchs].map(|found| {
                let error = found.to_kind(Kind::Double) - &expected;
                error.square().mean(None).sqrt().double_value(&[])
            });
            assert!(
                ours < 1.01 * libtorchs,
                "window {window:?}: {ours:e} {libtorchs:e}"
            );
        }
    }

    /// One softmax over everything.
    fn plain([query, key, value]: [&Tensor; 3], scores: Scores, sinks: Option<&Tensor>) -> Tensor {
        let n_tokens = query.size()[1];
        let repeats = query.size()[2] / key.size()[2];
        let heads = |x: &Tensor| (x.transpose(1, 2)).repeat_interleave_self_int(repeats, 1, None);
        let products = query.transpose(1, 2).matmul(&heads(key).transpose(2, 3)) * scores.scale;
        let limit = scores.window.map_or(i64::MAX, |window| window as i64);
        let mut seen = mask(n_tokens, n_tokens, limit, Device::Cpu).unwrap();
        if let Some(chunk) = scores.chunk {
            let chunks = Tensor::arange(n_tokens, (Kind::Int64, Device::Cpu))
                .divide_scalar_mode(chunk as i64, "floor");
            seen = seen.logical_and(&chunks.view([-1, 1]).eq_tensor(&chunks));
        }
        let mut products = products.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
        if let Some(sinks) = sinks {
            let sinks = sinks.view([1, -1, 1, 1]);
            let sinks = sinks.expand([query.size()[0], -1, n_tokens, 1], false);
            products = Tensor::cat(&[products, sinks], 3);
        }
        let weights = products.softmax(-1, None).narrow(3, 0, n_tokens);
        let mixed = weights.matmul(&heads(value));
        mixed.transpose(1, 2).flatten(2, 3)
    }

    fn by_parts(
        tensors: [&Tensor; 3],
        scores: Scores,
        sinks: Option<&Tensor>,
        ends: &[i64],
    ) -> Tensor {
        let mut cache = (ends.len() > 1).then(KvCache::new);
        let mut start = 0;
        let mut found = Vec::new();
        for &end in ends {
            let [query, key, value] = tensors.map(|x| x.slice(1, start, end, 1));
            found.push(attention(&query, &key, &value, scores, sinks, cache.as_mut()).unwrap());
            start = end;
        }
        Tensor::cat(&found, 1)
    }

    /// Many blocks, windows that end inside one, chunks, sinks, values wider and narrower than keys, and a cache, against one
    /// softmax over everything.
    #[test]
    fn blocks_agree_with_a_plain_softmax() {
        let (n_tokens, n_heads, n_kv_heads, head_dim) = (2 * QUERY_BLOCK + 77, 4, 2, 8);
        let options = (Kind::Float, Device::Cpu);
        let random = |n_heads, width| Tensor::randn([2, n_tokens, n_heads, width], options);
        let (query, key) = (random(n_heads, head_dim), random(n_kv_heads, head_dim));
        let some_sinks = Tensor::randn([n_heads], options) * 3.0;
        let reaches = [
            (None, None),
            (Some(1), None),
            (Some(100), None),
            (Some(300), None),
            (Some(5000), None),
            (None, Some(1)),
            (None, Some(10)),
            (Some(40), Some(300)),
            (None, Some(5000)),
        ];
        for (window, chunk) in reaches {
            for (value_dim, sinks) in [(8, None), (6, None), (11, Some(&some_sinks))] {
                let value = random(n_kv_heads, value_dim);
                let tensors = [&query, &key, &value];
                let scores = Scores {
                    chunk,
                    ..uncapped(window, 8)
                };
                let expected = plain(tensors, scores, sinks);
                for ends in [vec![n_tokens], vec![10, 11, 400, n_tokens]] {
                    let found = by_parts(tensors, scores, sinks, &ends);
                    let error = (found - &expected).abs().max().double_value(&[]);
                    assert!(error < 1e-5, "{scores:?} {value_dim}: {error:e}");
                }
            }
        }
    }

    /// The kernel's bfloat16 against float32.
    #[test]
    fn bf16_agrees_with_a_plain_softmax() {
        let options = (Kind::Float, Device::Cpu);
        let random = |n_heads, width| {
            let numbers = Tensor::randn([2, 130, n_heads, width], options);
            numbers.to_kind(Kind::BFloat16)
        };
        let sinks = Tensor::randn([4], options) * 3.0;
        let (query, key, value) = (random(4, 24), random(2, 24), random(2, 10));
        for (chunk, sinks) in [
            (None, Some(&sinks)),
            (Some(50), Some(&sinks)),
            (Some(7), None),
        ] {
            let scores = Scores {
                chunk,
                ..uncapped(None, 24)
            };
            let found = by_parts([&query, &key, &value], scores, sinks, &[130]);
            let wide = [&query, &key, &value].map(|x| x.to_kind(Kind::Float));
            let expected = plain(wide.each_ref(), scores, sinks);
            // Values up to 4, probabilities and results rounded to 2^-9 of themselves.
            let error = (found.to_kind(Kind::Float) - expected).abs().max();
            assert!(error.double_value(&[]) < 0.03, "{scores:?}");
        }
    }
}
