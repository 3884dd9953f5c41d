//! What a row can say of how a family sees.
//!
//! Two kinds of rows: a [`Tower`] turns patches of an image into features, and [`Eyes`] say which tower a family has, which
//! of its features are used, and how they become embeddings of the language model.

use crate::model::NormKind;

/// A transformer over the patches of an image.
#[derive(Debug)]
pub struct Tower {
    /// `vision_config.model_type` in its spellings.
    pub model_types: &'static [&'static str],
    /// What transformers takes for absent keys of `vision_config`, as JSON.
    pub defaults: &'static [(&'static str, &'static str)],
    /// The key of its width.
    pub width: &'static str,
    pub mlp_width: MlpWidth,
    pub patches: &'static str,
    pub patches_form: PatchesForm,
    pub patches_bias: bool,
    /// Norm of the patches before they get their positions.
    pub patches_norm: Option<&'static str>,
    /// A token in front of the patches.
    pub class_token: Option<(&'static str, &'static [usize])>,
    pub positions: Option<Learned>,
    pub rotary: Option<Axial>,
    /// Norm before the first layer.
    pub first_norm: Option<&'static str>,
    /// The list of layers.
    pub layers: &'static str,
    pub norm: TowerNorm,
    /// Before the attention and before the MLP.
    pub norm_names: [&'static str; 2],
    /// Behind them.
    pub norms_after: Option<[&'static str; 2]>,
    pub attention: TowerAttention,
    pub mlp: TowerMlp,
    /// What each layer multiplies the outputs of its attention and of its MLP by.
    pub scales: Option<TowerScales>,
    /// The key that says whether what the layers' linears read and make is bounded.
    pub bounded_if: Option<&'static str>,
    /// Whether layers attend within windows, but for those that `fullatt_block_indexes` names.
    pub windows: bool,
    /// Whether tiles may be padded at the right and at the bottom: no patch attends to padding, and positions are those of what is
    /// left.
    pub padded_tiles: bool,
    pub last_norm: Option<&'static str>,
    /// The layers after the others, of a tower that reads all tiles of an image together.
    pub global: Option<&'static Tower>,
}

/// How patches become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchesForm {
    /// A convolution whose kernel is as large as its step.
    Convolution,
    /// A linear that reads pixels from 0 to 1 as such from -1 to 1.
    Linear,
}

/// What a layer multiplies the outputs of its attention and of its MLP by.
#[derive(Debug, Clone, Copy)]
pub enum TowerScales {
    /// A number for each channel.
    Channels([&'static str; 2]),
    /// The tanh of one number.
    Gates([&'static str; 2]),
}

/// The MLP's width.
#[derive(Debug, Clone, Copy)]
pub enum MlpWidth {
    /// The number under this key.
    Key(&'static str),
    /// This many times the tower's width.
    Ratio(&'static str),
}

/// The norms of a tower.
#[derive(Debug, Clone, Copy)]
pub struct TowerNorm {
    pub kind: NormKind,
    pub eps: Eps,
}

/// A norm's epsilon.
#[derive(Debug, Clone, Copy)]
pub enum Eps {
    Is(f64),
    /// The number under this key of `vision_config`.
    Key(&'static str),
    /// That of the language model's norms.
    Text,
}

/// A table of positions that is added to the patches.
#[derive(Debug, Clone, Copy)]
pub struct Learned {
    pub name: &'static str,
    /// Its shape has a first dimension of 1.
    pub wrapped: bool,
    pub resampling: Resampling,
}

/// How a square table of positions serves a grid of another shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// Not at all: the image has the table's shape.
    Never,
    /// Each patch takes the position at its place, rounded down.
    Nearest,
    /// Linear, corners on corners.
    Bilinear,
    /// Cubic, pixels' edges on edges.
    Bicubic,
    /// There are two tables `[side, width]` of any length, of columns and of rows, which are added.
    ByAxis,
}

/// Rotary positions of rows and columns (`rope_theta`, else 10000).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axial {
    /// A half of the head for each, with the same frequencies.
    SameFrequencies,
    /// Rows take every other frequency of the whole head, columns the others.
    EveryOther,
    /// A half of the head for columns, and one for rows, which turn each by itself with the same frequencies.
    ByHalves,
}

#[derive(Debug, Clone, Copy)]
pub struct TowerAttention {
    /// One linear for queries, keys and values in this order, or three.
    pub inputs: &'static [&'static str],
    pub bias: TowerBias,
    pub output: &'static str,
    pub output_bias: TowerBias,
    pub norms: TowerQueryKeyNorms,
    /// What products of queries and keys are multiplied by; without it `1 / sqrt(head_dim)`.
    pub scale: Option<f64>,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy)]
pub enum TowerQueryKeyNorms {
    None,
    /// Of whole ones, where this key is true.
    Whole([&'static str; 2], &'static str),
    /// Of each head, like those of the layers; values have one without a weight.
    Heads([&'static str; 2]),
}

#[derive(Debug, Clone, Copy)]
pub enum TowerBias {
    Always,
    Never,
    /// Where this key is true.
    If(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub enum TowerMlp {
    /// `down(act(up(x)))`
    Plain([&'static str; 2], TowerBias),
    /// `down(act(gate(x)) * up(x))`
    Gated([&'static str; 3], TowerBias),
}

/// How a family sees.
#[derive(Debug)]
pub struct Eyes {
    pub model_types: &'static [&'static str],
    /// The tower where `vision_config` does not name one.
    pub tower: &'static str,
    /// What transformers takes for absent keys of the whole config, as JSON.
    pub defaults: &'static [(&'static str, &'static str)],
    /// What names begin with, in each way that checkpoints are stored.
    pub prefixes: &'static [Prefixes],
    pub selection: Selection,
    pub projector: &'static [Step],
    /// What makes of the features of the tower's layers `deepstack_visual_indexes` what is added behind the language model's
    /// first layers: names after the tower's prefix and this list.
    pub deepstack: Option<(&'static str, &'static [Step])>,
    pub tiles: Tiles,
    /// The keys of the placeholder's token id.
    pub image_token: &'static [&'static str],
    pub positions: Positions,
    pub sight: Sight,
    /// Whether layers of the language model attend to the embeddings, and the placeholder is a token as any other.
    pub looked_at: bool,
}

/// What names begin with, dots included.
#[derive(Debug, Clone, Copy)]
pub struct Prefixes {
    pub tower: &'static str,
    pub projector: &'static str,
    /// The embedding at the end of each row of patches.
    pub newline: &'static str,
}

/// Which of a tower's features are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// Those behind the last norm.
    Last,
    /// Those of the layer `vision_feature_layer`, without the class token where `vision_feature_select_strategy` is `default`.
    Layer,
    /// The same, of the last layer behind the last norm.
    LayerOrLast,
    /// Those of the layer `feature_layer` of `vision_config`.
    TowerLayer,
    /// Those of a tower that reads all tiles together.
    Tiled,
}

/// A step of a projector.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Norm(&'static str, NormKind, Eps),
    /// A norm like those of the tower's layers.
    TowerNorm(&'static str),
    Linear(&'static str, Width, StepBias),
    /// A linear that is stored as the convolution of a square of patches.
    Convolution(&'static str, Width),
    /// A matrix that is stored `[in, out]`.
    Matrix(&'static str, Width),
    Gelu,
    /// The function that this key names.
    Activation(&'static str),
    /// `down(act(gate(x)) * up(x))` with the tower's function, as wide as `intermediate_size` says.
    Gated([&'static str; 3]),
    /// Squares of patches become one, one patch after the other.
    Merge,
    /// The same, with the patches' channels outermost.
    MergeChannels,
    /// The mean of squares of patches, so that `mm_tokens_per_image` are left.
    Pool,
    /// The mean of squares of patches, with a side of so many as this key of `vision_config` says.
    PoolBy(&'static str),
    /// The features times the square root of their width, and where the key `standardize` of `vision_config` says so, less
    /// `std_bias` and times `std_scale`, which are stored under this prefix.
    Standardize(&'static str),
    /// A root mean square norm that stores nothing.
    PlainNorm(Eps),
}

/// How wide a linear's output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// As wide as its input.
    Input,
    /// As the tower's features.
    Tower,
    /// As the language model.
    Text,
}

#[derive(Debug, Clone, Copy)]
pub enum StepBias {
    Always,
    Never,
    /// Unless this key of the whole config says otherwise: the value where it is absent.
    Key(&'static str, bool),
}

/// How the tiles of one image follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiles {
    /// One after the other.
    Each,
    /// The whole image first, then the tiles as one image without what padded it, with the newline after each row.
    Unpadded,
    /// The same, shrunk where there are more patches than `vision_aspect_ratio` allows.
    UnpaddedAtMost,
    /// The tiles as one image without what padded it, then the whole image, of means of 2 by 2 patches: all before the projector.
    Crops,
}

/// How tokens of an image are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// One after the other, like words.
    Line,
    /// By row and column; the text goes on behind the longer of the two.
    Grid,
}

/// Which later tokens a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// None.
    Causal,
    /// Those of its own image, and of images that follow without a word between; in layers with a window none before that.
    OwnImage,
    /// The same, and all of them in layers with a window too.
    WholeImage,
    /// Those of its own image and of neighbours, in layers with a window alone, and only where the language model's
    /// `use_bidirectional_attention` is `vision`.
    OwnImageInWindows,
}
