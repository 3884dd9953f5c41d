//! Mixers of tokens other than attention, in float32.
//!
//! Each reads a causal convolution of a few tokens; those with a recurrent state go through the tokens in chunks, within
//! which they are products of matrices.

mod gated_delta;
mod mamba2;
mod short_conv;

use super::arch::MixerKind;
use super::attention::KvCache;
use super::config::MixerConfig;
use super::norm::Norm;
use super::plan::Kept;
use super::{Error, Role};
use tch::{Kind, Tensor};

/// Tokens whose mixing is one product.
const CHUNK: i64 = 64;

/// A layer's mixer with its small tensors, float32.
#[derive(Debug)]
pub(super) struct Mixer {
    config: MixerConfig,
    /// Of the gate, `X`, `B`, `C` and the step.
    part_scales: Option<[f64; 5]>,
    /// `[kernel, channels]`
    kernel: Tensor,
    /// `[channels]`
    kernel_bias: Option<Tensor>,
    /// Negative, `[n_heads]`.
    decay: Option<Tensor>,
    /// `[n_heads]`
    step_bias: Option<Tensor>,
    /// `[n_heads, 1]`
    skip: Option<Tensor>,
}

impl Mixer {
    /// `kept` gives the layer's small tensors, flat and in float32.
    pub fn load(
        config: MixerConfig,
        part_scales: Option<[f64; 5]>,
        kept: impl Fn(Kept) -> Result<Option<Tensor>, Error>,
    ) -> Result<Self, Error> {
        let kernel = kept(Kept::Convolution)?.expect("every mixer has a convolution");
        let kernel = kernel.f_view([-1, config.kernel as i64])?;
        let decay = kept(Kept::Decay)?;
        let decay = decay.map(|decay| decay.f_exp()?.f_neg());
        let skip = kept(Kept::Skip)?;
        Ok(Self {
            config,
            part_scales,
            kernel: kernel.f_tr()?.f_contiguous()?,
            kernel_bias: kept(Kept::ConvolutionBias)?,
            decay: decay.transpose()?,
            step_bias: kept(Kept::StepBias)?,
            skip: skip.map(|skip| skip.f_view([-1, 1])).transpose()?,
        })
    }

    /// Mixes the tokens of what linears made, `[B, T, ..]` each as `part` gives them; the result is `[B, T, width]` float32.
    ///
    /// `norm` is the one of what each head makes, where the output gate comes after it.
    pub fn mix(
        &self,
        mut part: impl FnMut(Role) -> Tensor,
        norm: Option<&Norm>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, Error> {
        let mut wide = |role: Role| part(role).f_to_kind(Kind::Float);
        match self.config.kind {
            MixerKind::ShortConv => {
                let parts = [wide(Role::B)?, wide(Role::C)?, wide(Role::X)?];
                short_conv::mix(self, parts, cache)
            }
            MixerKind::GatedDelta => {
                let read = [Role::C, Role::B, Role::X].map(&mut wide);
                let [query, key, value] = read;
                let inputs = gated_delta::Inputs {
                    read: Tensor::f_cat(&[query?, key?, value?], -1)?,
                    gate: wide(Role::OutputGate)?,
                    beta: wide(Role::Beta)?,
                    step: wide(Role::Step)?,
                };
                gated_delta::mix(
                    self,
                    inputs,
                    norm.expect("a norm of what heads make"),
                    cache,
                )
            }
            MixerKind::Mamba2 => {
                let roles = [Role::OutputGate, Role::X, Role::B, Role::C, Role::Step];
                let mut parts = Vec::new();
                for (index, role) in roles.into_iter().enumerate() {
                    let mut part = wide(role)?;
                    if let Some(scales) = self.part_scales {
                        part = part.f_mul_scalar(scales[index])?;
                    }
                    parts.push(part);
                }
                let inputs = mamba2::Inputs {
                    read: Tensor::f_cat(&parts[1..4], -1)?,
                    step: parts.swap_remove(4),
                    gate: parts.swap_remove(0),
                };
                mamba2::mix(self, inputs, cache)
            }
        }
    }

    /// The causal convolution of each channel of `x` `[B, T, channels]`, which follows on what `cache` has seen.
    fn convolve(&self, x: &Tensor, cache: Option<&mut KvCache>) -> Result<Tensor, Error> {
        let (size, n_earlier) = (x.size(), self.config.kernel as i64 - 1);
        let options = (Kind::Float, x.device());
        let earlier = match cache.as_ref().and_then(|cache| cache.convolved.as_ref()) {
            Some(earlier) => earlier.shallow_clone(),
            None => Tensor::f_zeros([size[0], n_earlier, size[2]], options)?,
        };
        let x = Tensor::f_cat(&[&earlier, x], 1)?;
        if let Some(cache) = cache {
            cache.convolved = Some(x.f_narrow(1, size[1], n_earlier)?.f_contiguous()?);
        }
        let mut sum = x.f_narrow(1, 0, size[1])?.f_mul(&self.kernel.f_get(0)?)?;
        for tap in 1..=n_earlier {
            let shifted = x.f_narrow(1, tap, size[1])?;
            sum = sum.f_addcmul_(&shifted, &self.kernel.f_get(tap)?)?;
        }
        Ok(match &self.kernel_bias {
            Some(bias) => sum.f_add_(bias)?,
            None => sum,
        })
    }

    /// The three parts of what a mixer with a state reads, through the convolution and silu: `[B, T, widths[i]]`.
    fn read(
        &self,
        x: &Tensor,
        widths: [usize; 3],
        cache: Option<&mut KvCache>,
    ) -> Result<[Tensor; 3], Error> {
        let x = self.convolve(x, cache)?.f_silu_()?;
        let widths = widths.map(|width| width as i64);
        Ok([
            x.f_narrow(2, 0, widths[0])?,
            x.f_narrow(2, widths[0], widths[1])?,
            x.f_narrow(2, widths[0] + widths[1], widths[2])?,
        ])
    }

    /// How far each head goes, `softplus(step + bias)`, and what its state decays by on the way, in logarithms:
    /// `[B, n_heads, T]` each.
    fn steps(&self, step: &Tensor) -> Result<[Tensor; 2], Error> {
        let bias = self.step_bias.as_ref().expect("steps have a bias");
        let decay = self.decay.as_ref().expect("a state decays");
        let (least, most) = self.config.step_limit;
        let mut steps = step.f_add(bias)?.f_softplus()?;
        if least > 0.0 || most < f64::INFINITY {
            steps = steps.f_clamp(least, most)?;
        }
        let decays = steps.f_mul(decay)?;
        Ok([steps.f_transpose(1, 2)?, decays.f_transpose(1, 2)?])
    }
}

/// `x` `[B, T, n * dim]` as `[B, n, T, dim]`.
fn heads(x: &Tensor, dim: usize) -> Result<Tensor, Error> {
    let size = x.size();
    let heads = x.f_reshape([size[0], size[1], -1, dim as i64])?;
    Ok(heads.f_transpose(1, 2)?)
}

/// The groups' `x` `[B, n_groups, ..]` for each of `n_heads`.
fn for_heads(x: &Tensor, n_heads: usize) -> Result<Tensor, Error> {
    let repeats = n_heads as i64 / x.size()[1];
    Ok(if repeats == 1 {
        x.shallow_clone()
    } else {
        x.f_repeat_interleave_self_int(repeats, 1, None)?
    })
}

/// What the state decays by between two tokens of a chunk, `exp(sums[i] - sums[j])` for `j <= i` and else 0, of running sums
/// `[B, n_heads, T]` of logarithms: `[B, n_heads, T, T]`.
fn pairwise(sums: &Tensor) -> Result<Tensor, Error> {
    let between = sums.f_unsqueeze(-1)?.f_sub(&sums.f_unsqueeze(-2)?)?;
    let len = sums.size()[2];
    let later = Tensor::f_ones([len, len], (Kind::Bool, sums.device()))?.f_triu(1)?;
    Ok(between.f_masked_fill(&later, f64::NEG_INFINITY)?.f_exp()?)
}

/// The state `[B, n_heads, ..]` that `cache` ends with, or zeros.
fn state_before(cache: Option<&KvCache>, shape: [i64; 4], like: &Tensor) -> Result<Tensor, Error> {
    Ok(match cache.and_then(|cache| cache.state.as_ref()) {
        Some(state) => state.shallow_clone(),
        None => Tensor::f_zeros(shape, (Kind::Float, like.device()))?,
    })
}

/// The chunks of `n_tokens`: the first token of each, and how many.
fn chunks(n_tokens: i64) -> impl Iterator<Item = (i64, i64)> {
    let starts = (0..n_tokens).step_by(CHUNK as usize);
    starts.map(move |start| (start, CHUNK.min(n_tokens - start)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use tch::Device;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// A mixer of 6 heads 5 wide, in 3 groups with keys 4 wide.
    fn mixer(kind: MixerKind) -> Mixer {
        let config = MixerConfig {
            kind,
            kernel: 3,
            bias: false,
            convolution_bias: true,
            output_bias: false,
            has_norm: true,
            n_heads: 6,
            head_dim: 5,
            n_groups: 3,
            state_dim: 4,
            step_limit: (0.0, f64::INFINITY),
        };
        let channels = config.channels() as i64;
        let kept = |kept: Kept| {
            Ok(Some(match kept {
                Kept::Convolution => Tensor::randn([channels * 3], OPTIONS),
                Kept::ConvolutionBias => Tensor::randn([channels], OPTIONS),
                _ => Tensor::randn([6], OPTIONS),
            }))
        };
        Mixer::load(config, None, kept).unwrap()
    }

    /// What `mixer` makes of `parts`, token by token of `ends` runs.
    fn mixed(mixer: &Mixer, parts: &[(Role, Tensor)], ends: &[i64]) -> Tensor {
        let norm = Norm::plain(1e-6);
        let mut cache = (ends.len() > 1).then(KvCache::new);
        let mut start = 0;
        let runs = ends.iter().map(|&end| {
            let part = |role| {
                let part = parts.iter().find(|part| part.0 == role).unwrap();
                part.1.slice(1, start, end, 1).copy()
            };
            let run = mixer.mix(part, Some(&norm), cache.as_mut()).unwrap();
            start = end;
            run
        });
        Tensor::cat(&runs.collect::<Vec<_>>(), 1)
    }

    /// Chunks and their rest, and runs of some tokens that a cache joins, against one token at a time.
    #[test]
    fn chunks_make_what_single_tokens_make() {
        tch::manual_seed(6);
        let n_tokens = 2 * CHUNK + 7;
        let singly: Vec<i64> = (1..=n_tokens).collect();
        let kinds = [
            MixerKind::GatedDelta,
            MixerKind::Mamba2,
            MixerKind::ShortConv,
        ];
        for kind in kinds {
            let mixer = mixer(kind);
            let parts: Vec<(Role, Tensor)> = [
                (Role::X, mixer.config.width()),
                (Role::B, mixer.config.state_width()),
                (Role::C, mixer.config.state_width()),
                (Role::OutputGate, mixer.config.width()),
                (Role::Beta, mixer.config.n_heads),
                (Role::Step, mixer.config.n_heads),
            ]
            .map(|(role, width)| {
                let short = kind == MixerKind::ShortConv;
                let width = if short { mixer.config.width() } else { width };
                (role, Tensor::randn([2, n_tokens, width as i64], OPTIONS))
            })
            .into();
            let expected = mixed(&mixer, &parts, &singly);
            for ends in [vec![n_tokens], vec![1, CHUNK + 3, n_tokens]] {
                let found = mixed(&mixer, &parts, &ends);
                // A norm that meets a small vector multiplies its rounding errors: most tokens are held to it.
                let errors = (found - &expected).abs().amax([2], false).flatten(0, -1);
                let error = errors.quantile_scalar(0.9, None, false, "linear");
                let error = error.double_value(&[]);
                assert!(error < 1e-4, "{kind:?} {ends:?}: {error}");
            }
        }
    }
}
