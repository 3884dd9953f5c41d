//! What a row says of attention: projections, positions, norms of queries and keys, windows.

use super::{Bias, LinearSpec};

/// The attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// They compute Q, K and V; none where those are made of latents.
    pub inputs: &'static [LinearSpec],
    /// Whether these stay in float, because vLLM puts their rows in another order and does that wrongly to packed ones.
    pub float_inputs: bool,
    pub latent: Option<Latent>,
    pub bias: Bias,
    pub output: LinearSpec,
    pub output_bias: Bias,
    pub scale: AttentionScale,
    pub qk_norm: QkNorm,
    /// The key that says whether queries and keys are normalized at all, where one does; absent is false.
    pub qk_norm_if: Option<&'static str>,
    /// The key of the bound that Q, K and V are clipped to, if it is not null.
    pub clip: Option<&'static str>,
    pub temperature: Temperature,
    /// The tensor with a score for each head that takes part in the softmax and mixes no value.
    pub sinks: Option<&'static str>,
    pub alibi: Alibi,
    /// Whether each head's values are normalized, with nothing stored.
    pub value_norm: bool,
    pub full_layers: Option<FullLayers>,
    pub borrowing: Option<Borrowing>,
}

/// What layers that see all tokens have of their own, where the others have a window. `per_layer_config` says it better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullLayers {
    /// The key of the width of their heads.
    pub head_dim: &'static str,
    /// The key that says whether their values are the keys, before norm and positions.
    pub values_are_keys: &'static str,
    /// The key of how many heads of keys and values there are then.
    pub kv_heads: &'static str,
}

/// Layers that attend to images in self-attention's place, through a norm of queries and one of keys. They change nothing where
/// there is no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrossAttention {
    /// The key of the list of these layers.
    pub layers: &'static str,
    pub query: LinearSpec,
    /// They read what the tower and the projector make of images.
    pub keys_values: &'static [LinearSpec],
    pub output: LinearSpec,
    /// The tensors of the numbers whose tanh multiplies what attention and what the MLP adds: inside the layer, the whole names.
    pub gates: [&'static str; 2],
}

/// Last layers that compute no keys and values, but read those of the last layer of their reach that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Borrowing {
    /// The key of how many these are.
    pub layers: &'static str,
    /// The key that says whether their MLP is twice as wide.
    pub double_mlp: &'static str,
}

/// Whether scores fall with the distance of a key, at a slope of its own for each head (Press et al. 2021,
/// arXiv:2108.12409).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alibi {
    Never,
    Always,
    /// If this key is true; the slopes are scaled as the products of queries and keys are.
    ScaledIf(&'static str),
}

/// How many heads of keys and values there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvHeads {
    /// This key's value; absent, as many as query heads.
    By(&'static str),
    /// One if this key is true, else as many as query heads.
    OneIf(&'static str),
}

/// A table of learned positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    pub name: &'static str,
    /// Rows before that of the first position.
    pub offset: usize,
}

/// Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434): queries, keys and values are made of narrower
/// vectors, and only the last `qk_rope_head_dim` numbers of a head's query and key turn with the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latent {
    /// Q of the residual stream, where `q_lora_rank` is null.
    pub query: LinearSpec,
    pub query_down: LinearSpec,
    pub query_up: LinearSpec,
    pub key_value_down: LinearSpec,
    /// K, without its turning part, and V.
    pub key_value_up: LinearSpec,
}

/// What a query is multiplied by at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temperature {
    One,
    /// In layers without positions, if `attn_temperature_tuning`:
    /// `1 + attn_scale ln(1 + floor((position + 1) / floor_scale))`.
    WithoutRope,
    /// `1 + beta ln(1 + floor(position / original))`, as `llama_4_scaling_beta` and `original_max_position_embeddings` of
    /// the rotary settings say.
    Stretched,
}

/// What the products of queries and keys are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionScale {
    One,
    /// One over the root of `head_dim`.
    HeadDim,
    /// The same, times the square of `0.1 m ln(factor) + 1` where the rotary embedding is stretched and `mscale_all_dim`
    /// gives the `m`.
    StretchedHeadDim,
    /// One over the root of this key's value.
    OverRootOf(&'static str),
    /// This key's value.
    By(&'static str),
}

/// How the norms of [`NormSite::Query`](super::NormSite::Query) and [`NormSite::Key`](super::NormSite::Key), where a layer has them, are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Of each head, before the rotary embedding.
    Heads,
    /// Of each head, after the rotary embedding.
    TurnedHeads,
    /// `x / rms(x)` of each head after the rotary embedding, with nothing stored; in layers without positions none.
    PlainTurnedHeads,
    /// Of all heads together, before the rotary embedding.
    Whole,
}

/// Which dimensions of a head the rotary embedding turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `i + n / 2`, of `n` that turn.
    Halves,
    /// `2 i` and `2 i + 1`.
    Neighbours,
    /// [`Self::Neighbours`], unless the key is false.
    NeighboursUnless(&'static str),
}

/// In which layers positions are embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayers {
    All,
    Never,
    /// All, if `position_embedding_type` is `rope`; else none.
    AllIfRope,
    /// All, unless this key is true.
    Unless(&'static str),
    /// Those with a window; all where none has one.
    Windowed,
    /// Those where the list `no_rope_layers` has a 1; without it all but every so many-th, as `no_rope_layer_interval` says.
    NoRopeLayers,
}

/// The rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotary {
    pub pairs: Pairs,
    pub layers: RopeLayers,
    /// Where layers with a window have an embedding of their own, which is never stretched: the key of its base.
    pub windowed: Option<&'static str>,
    /// Whether a dynamic stretch is fixed by `alpha`, where the config has that.
    pub alpha: bool,
    /// The key of how many of a head's dimensions turn, where the config does not call it a part of them.
    pub dim: Option<&'static str>,
}

/// Which layers attend only to the last `sliding_window` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowRule {
    /// None; the key is ignored.
    Never,
    /// All, unless `sliding_window` is null.
    EveryLayer,
    /// All if `use_sliding_window`.
    EveryLayerIfUsed,
    /// If `use_sliding_window`: those that `layer_types` calls `sliding_attention`, or else those from
    /// `max_window_layers` on.
    ByLayerType,
    /// Those that `layer_types` calls `sliding_attention`, or else all but every so many-th, as this key says; without
    /// such a key all.
    AllButEvery(&'static str),
    /// The same, but for the last layer, whatever `layer_types` says.
    AllButEveryAndLast(&'static str),
    /// If `use_sliding_window`: those that `layer_types` calls `sliding_attention`, or else those without positions.
    WithoutRope,
    /// Not to the last positions, but to those of their own chunk of `attention_chunk_size`: those that `layer_types`
    /// calls `chunked_attention`, or else those with positions.
    Chunks,
}
