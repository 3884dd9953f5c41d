//! What mixes the tokens of a layer: attention, another mixer, or both side by side.

use super::{Fold, Kept, Mix, NormSite, Resolver, Role, Slot, Stage, StageInput, fold_into};
use crate::model::arch::{Mixer, MixerKind};
use crate::model::config::MixerConfig;

impl Resolver<'_> {
    /// The stages that mix tokens: what reads the residual stream, and what adds to it.
    pub(super) fn mixing(&self) -> (Vec<Stage>, Vec<Stage>) {
        let (mut stages, mut outputs) = (Vec::new(), Vec::new());
        if self.layer.attention {
            let attention = &self.arch.attention;
            let (inputs, output) = match &attention.latent {
                None => self.attention(attention),
                Some(latent) => self.latent_attention(attention, latent),
            };
            stages.extend(inputs);
            outputs.push(output);
        }
        if let Some(row) = self.looks() {
            let (inputs, output) = self.cross_attention(row);
            stages.extend(inputs);
            outputs.push(output);
        }
        if let Some((row, config)) = self.mixer() {
            let [mut inputs, output] = self.mixer_stages(row, config);
            if let [attention, ..] = &mut stages[..] {
                attention.linears.append(&mut inputs.linears);
                attention.dense.append(&mut inputs.dense);
                attention.mixes.append(&mut inputs.mixes);
            } else {
                stages.push(inputs);
            }
            outputs.push(output);
        }
        (stages, outputs)
    }

    fn mixer(&self) -> Option<(&Mixer, &MixerConfig)> {
        let mixer = (self.arch.mixer.as_ref()).zip(self.config.mixer.as_ref());
        mixer.filter(|_| self.layer.mixer)
    }

    fn mixer_stages(&self, row: &Mixer, config: &MixerConfig) -> [Stage; 2] {
        let hidden = self.config.hidden_size;
        let linears = self.linears(row.inputs, config.bias);
        let width = config.width();
        let (input, fold) = self.input(NormSite::Attention);
        let (mixed, output_fold) = match row.kind {
            // The norm is the last step, and its weight has an entry for each channel.
            MixerKind::Mamba2 if config.has_norm => {
                let mixed = StageInput::NormOf(NormSite::Mixer, Slot::Mixed);
                (mixed, Fold::Norm(NormSite::Mixer))
            }
            // What follows the convolution is a product with this.
            MixerKind::ShortConv => (
                StageInput::Slot(Slot::Mixed),
                fold_into(&linears, Role::C, 0..width, false),
            ),
            MixerKind::Mamba2 | MixerKind::GatedDelta => {
                (StageInput::Slot(Slot::Mixed), Fold::None)
            }
        };
        [
            Stage {
                name: "mixer inputs",
                input,
                in_features: hidden,
                linears,
                dense: self.linears(row.dense, config.bias),
                experts: Vec::new(),
                mixes: vec![Mix::Mixer],
                fold,
                remakable: false,
            },
            Stage {
                name: "mixer output",
                input: mixed,
                in_features: width,
                linears: vec![self.linear(&row.output, config.output_bias, width)],
                dense: Vec::new(),
                experts: Vec::new(),
                mixes: vec![self.residual(NormSite::AfterAttention)],
                fold: output_fold,
                remakable: false,
            },
        ]
    }

    /// Rows that a role of the mixer has.
    pub(super) fn mixer_rows(&self, role: Role) -> usize {
        let Some((_, config)) = self.mixer() else {
            return 0;
        };
        match role {
            Role::OutputGate | Role::X => config.width(),
            Role::B | Role::C => config.state_width(),
            Role::Beta | Role::Step => config.n_heads,
            _ => self.config.hidden_size,
        }
    }

    pub(super) fn mixer_norm_len(&self) -> usize {
        self.mixer().map_or(0, |(row, config)| match row.kind {
            MixerKind::GatedDelta => config.head_dim,
            MixerKind::ShortConv | MixerKind::Mamba2 => config.width(),
        })
    }

    /// Runs of numbers that the norm there normalizes each by itself.
    pub(super) fn norm_groups(&self, site: NormSite) -> usize {
        let mixer = self.mixer().filter(|_| site == NormSite::Mixer);
        mixer.map_or(1, |(row, config)| match row.kind {
            MixerKind::Mamba2 => config.n_groups,
            MixerKind::GatedDelta | MixerKind::ShortConv => 1,
        })
    }

    /// The mixer's small tensors.
    pub(super) fn mixer_tensors(&self) -> Vec<(Kept, String, Vec<usize>)> {
        let Some((row, config)) = self.mixer() else {
            return Vec::new();
        };
        let (channels, heads) = (config.channels(), vec![config.n_heads]);
        let named = |name: &str| format!("{}.{}.{name}", self.prefix, row.module);
        let convolution = |suffix: &str| named(&format!("{}.{suffix}", row.convolution));
        let kernel = vec![channels, 1, config.kernel];
        let mut tensors = vec![(Kept::Convolution, convolution("weight"), kernel)];
        if config.convolution_bias {
            let bias = convolution("bias");
            tensors.push((Kept::ConvolutionBias, bias, vec![channels]));
        }
        if row.kind != MixerKind::ShortConv {
            tensors.push((Kept::Decay, named("A_log"), heads.clone()));
            tensors.push((Kept::StepBias, named("dt_bias"), heads.clone()));
        }
        if row.kind == MixerKind::Mamba2 {
            tensors.push((Kept::Skip, named("D"), heads));
        }
        tensors
    }
}
