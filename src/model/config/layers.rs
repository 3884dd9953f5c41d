//! What differs between layers: reach, positions, heads and widths.

use super::Parts;
use super::latent::LatentConfig;
use crate::model::Error;
use crate::model::arch::{Architecture, FullLayers, KvHeads, RopeLayers, Split, WindowRule};
use crate::model::keys::Keys;
use serde_json::Value;

/// What differs between layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each part")]
pub struct LayerConfig {
    /// How many positions a token sees, itself included; `None` for all.
    pub window: Option<usize>,
    /// A token sees only those of its own chunk, of so many positions.
    pub chunk: Option<usize>,
    /// Which of the model's rotary embeddings.
    pub rope: Option<usize>,
    pub n_kv_heads: usize,
    /// Numbers of a head's query and key.
    pub head_dim: usize,
    /// Numbers of a head's value.
    pub value_head_dim: usize,
    /// Whether values are the keys, before norm and positions.
    pub values_are_keys: bool,
    pub keys_values: KeysValues,
    /// Rows of the MLP's gate.
    pub intermediate_size: usize,
    /// Whether it has attention, another mixer, an MLP or experts.
    pub attention: bool,
    pub mixer: bool,
    pub mlp: bool,
    /// Whether it attends to images, in attention's place.
    pub looks: bool,
}

/// Whose keys and values a layer's attention reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysValues {
    /// Its own.
    Own,
    /// Its own, which later layers of the same reach read too.
    Lent,
    /// Those of the last layer of the same reach that computes any.
    Borrowed {
        /// Whether no later layer reads them.
        last: bool,
    },
}

/// Heads and widths of layers that have none of their own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub latent: Option<LatentConfig>,
    pub intermediate_size: usize,
}

impl Shape {
    pub fn new(
        keys: &Keys<'_>,
        arch: &Architecture,
        hidden_size: usize,
        n_heads: usize,
    ) -> Result<Self, Error> {
        let by_fourths =
            (arch.attention.inputs.iter()).any(|linear| linear.split == Split::Fourths);
        if by_fourths && !n_heads.is_multiple_of(4) {
            return Err(keys.invalid("num_attention_heads", "a multiple of 4"));
        }
        let (kv_key, n_kv_heads) = match arch.kv_heads {
            KvHeads::By(key) => (key, keys.usize(key)?.unwrap_or(n_heads)),
            KvHeads::OneIf(key) => match keys.bool(key)? {
                Some(true) => (key, 1),
                _ => (key, n_heads),
            },
        };
        check_kv_heads(keys, kv_key, n_kv_heads, n_heads)?;
        let latent = match arch.attention.latent {
            Some(_) => Some(LatentConfig::new(keys, n_heads, n_kv_heads)?),
            None => None,
        };
        let head_dim = match (&latent, keys.usize("head_dim")?) {
            (Some(latent), _) => latent.head_dim,
            (None, Some(head_dim)) => head_dim,
            (None, None) if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
            (None, None) => {
                return Err(keys.invalid(
                    "hidden_size",
                    format!("a multiple of num_attention_heads, {n_heads}, or head_dim"),
                ));
            }
        };
        check_head_dim(keys, "head_dim", head_dim)?;
        Ok(Self {
            n_kv_heads,
            head_dim,
            latent,
            intermediate_size: intermediate_size(keys, arch, hidden_size)?,
        })
    }
}

fn check_kv_heads(
    keys: &Keys<'_>,
    key: &str,
    n_kv_heads: usize,
    n_heads: usize,
) -> Result<(), Error> {
    if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
        let expected = format!("a divisor of num_attention_heads, {n_heads}");
        return Err(keys.invalid(key, expected));
    }
    Ok(())
}

fn check_head_dim(keys: &Keys<'_>, key: &str, head_dim: usize) -> Result<(), Error> {
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(keys.invalid(key, "an even number above 0"));
    }
    Ok(())
}

/// Windows and positions of all layers.
pub(super) fn layers(
    keys: &Keys<'_>,
    arch: &Architecture,
    parts: &[Parts],
    shape: Shape,
    n_heads: usize,
) -> Result<Vec<LayerConfig>, Error> {
    let n_layers = parts.len();
    let positioned = match arch.rotary.layers {
        RopeLayers::All | RopeLayers::Windowed => vec![true; n_layers],
        RopeLayers::Never => vec![false; n_layers],
        RopeLayers::Unless(key) => vec![keys.bool(key)? != Some(true); n_layers],
        RopeLayers::AllIfRope => {
            let kind = keys.str("position_embedding_type")?;
            vec![kind == Some("rope"); n_layers]
        }
        RopeLayers::NoRopeLayers => match keys.get("no_rope_layers") {
            None => {
                let interval = keys.size("no_rope_layer_interval")?;
                (1..=n_layers).map(|layer| layer % interval != 0).collect()
            }
            Some(list) => {
                let flags = list.as_array().map(|flags| flags.iter().map(Value::as_u64));
                let flags: Option<Vec<u64>> = flags.and_then(Iterator::collect);
                let flags = flags
                    .filter(|flags| flags.len() == n_layers)
                    .ok_or_else(|| {
                        let expected = format!("a list of num_hidden_layers, {n_layers}, numbers");
                        keys.invalid("no_rope_layers", expected)
                    })?;
                flags.iter().map(|&flag| flag != 0).collect()
            }
        },
    };
    let mut windows = windows(keys, arch.window, &positioned)?;
    if let (WindowRule::AllButEveryAndLast(_), Some(last)) = (arch.window, windows.last_mut()) {
        *last = None;
    }
    let mut chunks = vec![None; n_layers];
    if arch.window == WindowRule::Chunks {
        std::mem::swap(&mut windows, &mut chunks);
    }
    let any_window = windows.iter().any(Option::is_some);
    let borrowing = arch.attention.borrowing;
    let keys_values = match borrowing {
        None => vec![KeysValues::Own; n_layers],
        Some(row) => {
            let n_borrowers = keys.usize(row.layers)?.unwrap_or(0);
            keys_values(keys, row.layers, n_borrowers, &windows)?
        }
    };
    let doubles = match borrowing {
        None => false,
        Some(row) => keys.bool(row.double_mlp)? == Some(true),
    };
    let looking = looking(keys, arch, n_layers)?;
    let mut layers = Vec::new();
    for index in 0..n_layers {
        let (window, parts) = (windows[index], parts[index]);
        let positioned = match arch.rotary.layers {
            RopeLayers::Windowed => window.is_some() || !any_window,
            _ => positioned[index],
        };
        let rope = usize::from(window.is_some() && arch.rotary.windowed.is_some());
        let full = arch.attention.full_layers.filter(|_| window.is_none());
        let (head_dim, n_kv_heads) = match full {
            None => (shape.head_dim, shape.n_kv_heads),
            Some(full) => full_heads(keys, full, shape, n_heads, index)?,
        };
        let borrows = matches!(keys_values[index], KeysValues::Borrowed { .. });
        layers.push(LayerConfig {
            window,
            chunk: chunks[index],
            rope: positioned.then_some(rope),
            n_kv_heads,
            head_dim,
            value_head_dim: (shape.latent).map_or(head_dim, |latent| latent.value_head_dim),
            values_are_keys: match full {
                None => false,
                Some(full) => keys.bool(full.values_are_keys)? == Some(true),
            },
            keys_values: keys_values[index],
            intermediate_size: shape.intermediate_size * if doubles && borrows { 2 } else { 1 },
            attention: parts.attention && !looking.contains(&index),
            looks: looking.contains(&index),
            mixer: parts.mixer,
            mlp: parts.mlp || parts.experts,
        });
    }
    Ok(layers)
}

/// The layers that attend to images.
fn looking(keys: &Keys<'_>, arch: &Architecture, n_layers: usize) -> Result<Vec<usize>, Error> {
    let Some(row) = arch.cross_attention else {
        return Ok(Vec::new());
    };
    let list = keys.get(row.layers).and_then(Value::as_array);
    let list = list.and_then(|list| {
        let layers = list.iter().map(|value| Some(value.as_u64()? as usize));
        layers.collect::<Option<Vec<_>>>()
    });
    list.filter(|list| list.iter().all(|&layer| layer < n_layers))
        .ok_or_else(|| {
            let expected = format!("a list of layers below num_hidden_layers, {n_layers}");
            keys.invalid(row.layers, expected)
        })
}

/// Heads of the layers that see all tokens, where they have their own.
fn full_heads(
    keys: &Keys<'_>,
    full: FullLayers,
    shape: Shape,
    n_heads: usize,
    index: usize,
) -> Result<(usize, usize), Error> {
    let (mut head_dim, mut n_kv_heads) = (shape.head_dim, shape.n_kv_heads);
    // As transformers 5.23 writes it.
    if let Some(layers) = keys.get("per_layer_config") {
        let layer = layers.get(index.to_string()).unwrap_or(&Value::Null);
        let path = format!("{}.{index}", keys.name("per_layer_config"));
        let layer = Keys {
            json: layer,
            path: &path,
        };
        head_dim = layer.usize("head_dim")?.unwrap_or(head_dim);
        n_kv_heads = layer.usize("num_key_value_heads")?.unwrap_or(n_kv_heads);
        check_head_dim(&layer, "head_dim", head_dim)?;
        check_kv_heads(&layer, "num_key_value_heads", n_kv_heads, n_heads)?;
        return Ok((head_dim, n_kv_heads));
    }
    head_dim = keys.usize(full.head_dim)?.unwrap_or(head_dim);
    check_head_dim(keys, full.head_dim, head_dim)?;
    if keys.bool(full.values_are_keys)? == Some(true) {
        n_kv_heads = keys.usize(full.kv_heads)?.unwrap_or(n_kv_heads);
        check_kv_heads(keys, full.kv_heads, n_kv_heads, n_heads)?;
    }
    Ok((head_dim, n_kv_heads))
}

/// Who computes keys and values for whom, where the last `n_borrowers` layers compute none.
fn keys_values(
    keys: &Keys<'_>,
    key: &str,
    n_borrowers: usize,
    windows: &[Option<usize>],
) -> Result<Vec<KeysValues>, Error> {
    let n_layers = windows.len();
    let mut found = vec![KeysValues::Own; n_layers];
    if n_borrowers == 0 {
        return Ok(found);
    }
    let first = n_layers.checked_sub(n_borrowers);
    let first = first.ok_or_else(|| keys.invalid(key, "less than num_hidden_layers"))?;
    let same_reach = |a: usize, b: usize| windows[a].is_some() == windows[b].is_some();
    for layer in first..n_layers {
        let lender = (0..first).rev().find(|&lender| same_reach(lender, layer));
        let lender = lender.ok_or_else(|| {
            let expected = "so few layers that one with and one without a window come before them";
            keys.invalid(key, expected)
        })?;
        found[lender] = KeysValues::Lent;
        found[layer] = KeysValues::Borrowed {
            last: !(layer + 1..n_layers).any(|later| same_reach(later, layer)),
        };
    }
    Ok(found)
}

/// `positioned` says which layers have positions of their own. Chunks are in the windows' place.
fn windows(
    keys: &Keys<'_>,
    rule: WindowRule,
    positioned: &[bool],
) -> Result<Vec<Option<usize>>, Error> {
    let n_layers = positioned.len();
    let every_layer = || 0..n_layers;
    let if_used = || match keys.bool("use_sliding_window")? {
        Some(true) => keys.window(),
        _ => Ok(None),
    };
    let (window, by_default): (_, Vec<bool>) = match rule {
        WindowRule::Never => return Ok(vec![None; n_layers]),
        WindowRule::EveryLayer => return Ok(vec![keys.window()?; n_layers]),
        WindowRule::EveryLayerIfUsed => return Ok(vec![if_used()?; n_layers]),
        WindowRule::ByLayerType => {
            let window = if_used()?;
            if keys.get("layer_types").is_none() {
                let first = keys.usize("max_window_layers")?.ok_or(Error::Missing {
                    key: "max_window_layers",
                })?;
                let windows = every_layer().map(|layer| window.filter(|_| layer >= first));
                return Ok(windows.collect());
            }
            (window, Vec::new())
        }
        WindowRule::AllButEvery(key) | WindowRule::AllButEveryAndLast(key) => {
            let interval = keys.usize(key)?.unwrap_or(usize::MAX).max(1);
            let windowed = every_layer().map(|layer| (layer + 1) % interval != 0);
            (keys.window()?, windowed.collect())
        }
        WindowRule::Chunks => (keys.length("attention_chunk_size")?, positioned.to_vec()),
        WindowRule::WithoutRope => (if_used()?, positioned.iter().map(|&has| !has).collect()),
    };
    let Some(types) = keys.get("layer_types") else {
        return Ok(by_default
            .into_iter()
            .map(|windowed| window.filter(|_| windowed))
            .collect());
    };
    let types = types
        .as_array()
        .filter(|types| types.len() == n_layers)
        .ok_or_else(|| {
            keys.invalid(
                "layer_types",
                format!("a list of num_hidden_layers, {n_layers}, names"),
            )
        })?;
    let (near, length) = match rule {
        WindowRule::Chunks => ("chunked_attention", "attention_chunk_size"),
        _ => ("sliding_attention", "sliding_window"),
    };
    types
        .iter()
        .map(|name| match (name.as_str(), window) {
            (Some("full_attention"), _) => Ok(None),
            (Some(name), Some(window)) if name == near => Ok(Some(window)),
            (Some(name), None) if name == near => {
                let expected = format!("full_attention only, because no {length} is in use");
                Err(keys.invalid("layer_types", expected))
            }
            _ => Err(keys.unsupported("layer_types", &format!("full_attention, {near}"))),
        })
        .collect()
}

/// The MLP's width, which is two thirds of what the config calls so where `block_auto_adjust_ff_dim` is true.
fn intermediate_size(
    keys: &Keys<'_>,
    arch: &Architecture,
    hidden_size: usize,
) -> Result<usize, Error> {
    if arch.four_times_wide && keys.get("intermediate_size").is_none() {
        return Ok(4 * hidden_size);
    }
    let size = keys.size("intermediate_size")?;
    if keys.bool("block_auto_adjust_ff_dim")? != Some(true) {
        return Ok(size);
    }
    let size = 2 * size / 3;
    Ok(match keys.positive("block_ffn_dim_multiplier")? {
        None => size,
        Some(factor) => {
            ((factor * size as f64) as usize).next_multiple_of(keys.size("block_multiple_of")?)
        }
    })
}
