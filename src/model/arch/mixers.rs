//! What a row says of the mixers that some layers have in attention's place, or beside it.

use super::{Bias, LinearSpec, NormKind};

/// A mixer of tokens other than attention: linears, a causal convolution of a few tokens, and in most a recurrent state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixer {
    pub kind: MixerKind,
    pub layers: MixerLayers,
    /// They compute what it reads.
    pub inputs: &'static [LinearSpec],
    /// The same, of a row or two for each head: they stay in float.
    pub dense: &'static [LinearSpec],
    pub bias: Bias,
    pub output: LinearSpec,
    pub output_bias: Bias,
    /// What its tensors' names begin with, inside the layer.
    pub module: &'static str,
    /// The convolution, inside the module, without `.weight`.
    pub convolution: &'static str,
    pub convolution_bias: Bias,
    /// The key of how many tokens the convolution reads.
    pub kernel: &'static str,
    /// The kind of the norm at [`super::NormSite::Mixer`].
    pub norm: NormKind,
    /// The key that says whether there is such a norm, where one does.
    pub norm_if: Option<&'static str>,
    /// The key of the least step, where that is not one end of `time_step_limit`.
    pub least_step: Option<&'static str>,
}

/// What a mixer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixerKind {
    /// Gated delta networks (Yang et al. 2024, arXiv:2412.06464).
    GatedDelta,
    /// A convolution between two gates (Liquid AI 2025, arXiv:2511.23404).
    ShortConv,
    /// State space duality (Dao and Gu 2024, arXiv:2405.21060).
    Mamba2,
}

/// Which layers have the mixer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixerLayers {
    /// All, beside attention.
    Beside,
    /// Those that `layer_types` calls so, or else all but every so many-th, as the key says.
    AllButEvery(&'static str, &'static str),
    /// Those that `layer_types` calls so, or else all but those that the list under the key has.
    AllButListed(&'static str, &'static str),
    /// Those that `layer_types` calls `linear_attention`; the others have nothing but attention, an MLP or experts either.
    Alone,
}

/// Keys of numbers that what linears make is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Multipliers {
    /// What attention reads.
    pub attention_input: &'static str,
    pub key: &'static str,
    pub attention_output: &'static str,
    /// What the mixer reads.
    pub mixer_input: &'static str,
    /// The list for the mixer's gate, `X`, `B`, `C` and step.
    pub mixer_parts: &'static str,
    pub mixer_output: &'static str,
    /// The list for the MLP's gate and its output.
    pub mlp: &'static str,
}
