//! A layer's linears, norms and stages, from the family's row and the model's numbers.

use super::{Fold, Kept, LinearPlan, Mix, NormPlan, Rows, Slot, Stage, StageInput, XIELU};
use crate::model::Config;
use crate::model::arch::{
    Architecture, Attention, Experts, Latent, LayerInput, LinearSpec, Mlp, NormKind, NormSite,
    QkNorm, Role, Split,
};
use crate::model::config::{Activation, ExpertsConfig, KeysValues, LayerConfig, LayerInputConfig};
use crate::model::stored::Stored;

/// What names and shapes of one layer follow from.
pub(super) struct Resolver<'a> {
    pub arch: &'a Architecture,
    pub config: &'a Config,
    pub prefix: String,
    /// Whether it has experts.
    pub is_sparse: bool,
    pub layer: LayerConfig,
}

impl Resolver<'_> {
    pub(super) fn has(&self, site: NormSite) -> bool {
        let asked_for = match site {
            // Where some layers attend to images, only those have norms of queries and keys.
            NormSite::Query | NormSite::Key if self.arch.cross_attention.is_some() => {
                self.layer.looks
            }
            NormSite::Query => self.config.qk_norm && self.layer.attention,
            NormSite::Key => self.config.qk_norm && self.layer.attention && !self.borrows(),
            NormSite::AfterExperts
            | NormSite::Router
            | NormSite::Experts
            | NormSite::BesideExperts
            | NormSite::OfExperts => self.is_sparse,
            NormSite::AfterLayerInput => self.config.layer_input.is_some(),
            NormSite::Mixer => {
                let mixer = self.config.mixer.as_ref().filter(|_| self.layer.mixer);
                mixer.is_some_and(|mixer| mixer.has_norm)
            }
            NormSite::QueryLatent => {
                (self.config.latent.as_ref()).is_some_and(|latent| latent.query_rank.is_some())
            }
            _ => true,
        };
        asked_for && self.arch.norms.iter().any(|norm| norm.0 == site)
    }

    pub(super) fn kept(
        &self,
        sparse: Option<(&Experts, &ExpertsConfig)>,
    ) -> Vec<(Kept, String, Vec<usize>)> {
        let named = |name: &str| format!("{}.{name}", self.prefix);
        let sinks = (self.arch.attention.sinks)
            .filter(|_| self.layer.attention)
            .map(|name| (Kept::Sinks, named(name), vec![self.config.n_heads]));
        let correction = sparse.and_then(|(row, config)| {
            let correction = row.router.correction?;
            let shape = if correction.is_row {
                vec![1, config.count]
            } else {
                vec![config.count]
            };
            Some((Kept::Correction, named(correction.name), shape))
        });
        let expert_scale = sparse.and_then(|(row, config)| {
            let name = row.router.expert_scale?;
            Some((Kept::ExpertScale, named(name), vec![config.count]))
        });
        let layer_scale = self.arch.layer_scale;
        let layer_scale = layer_scale.map(|name| (Kept::LayerScale, named(name), vec![1]));
        let kept = sinks.into_iter().chain(correction).chain(expert_scale);
        let mut kept: Vec<_> = kept.chain(layer_scale).collect();
        if self.config.activation == Activation::Xielu {
            for (name, shape) in XIELU {
                let stored = named(&format!("mlp.act_fn.{name}"));
                kept.push((Kept::Xielu(name), stored, shape.to_vec()));
            }
        }
        kept.extend(self.gates());
        kept.extend(self.mixer_tensors());
        kept
    }

    pub(super) fn norms(&self) -> Vec<NormPlan> {
        let (config, qk_norm) = (self.config, self.arch.attention.qk_norm);
        let heads = |n_heads: usize| match qk_norm {
            QkNorm::Heads | QkNorm::TurnedHeads | QkNorm::PlainTurnedHeads => self.layer.head_dim,
            QkNorm::Whole => n_heads * self.layer.head_dim,
        };
        let norms = self.arch.norms.iter().filter(|norm| self.has(norm.0));
        let norms = norms.map(|&(site, name)| NormPlan {
            site,
            kind: match (site, &self.arch.mixer) {
                (NormSite::Mixer, Some(mixer)) => mixer.norm,
                (NormSite::Router, _) => NormKind::RmsOverRoot,
                _ => self.arch.norm,
            },
            name: format!("{}.{name}", self.prefix),
            groups: self.norm_groups(site),
            len: match site {
                NormSite::Attention
                | NormSite::Mlp
                | NormSite::AfterAttention
                | NormSite::AfterMlp
                | NormSite::AfterExperts
                | NormSite::Router
                | NormSite::Experts
                | NormSite::BesideExperts
                | NormSite::OfExperts
                | NormSite::AfterLayerInput => config.hidden_size,
                NormSite::Query => heads(config.n_heads),
                NormSite::Key => heads(self.layer.n_kv_heads),
                NormSite::QueryLatent => self.rows(Role::QueryLatent),
                NormSite::KeyValueLatent => self.rows(Role::KeyValueLatent),
                NormSite::Mixer => self.mixer_norm_len(),
            },
        });
        norms.collect()
    }

    /// Rows that a role has, in an MLP that is as wide as the model's.
    pub(super) fn rows(&self, role: Role) -> usize {
        self.rows_of_width(role, self.layer.intermediate_size)
    }

    /// Rows that a role has, in an MLP of this width.
    pub(super) fn rows_of_width(&self, role: Role, width: usize) -> usize {
        let (config, layer) = (self.config, &self.layer);
        let latent = config.latent.unwrap_or_default();
        match role {
            Role::Q => config.n_heads * layer.head_dim,
            Role::K => layer.n_kv_heads * (layer.head_dim - latent.turning_dim),
            Role::V => layer.n_kv_heads * layer.value_head_dim,
            Role::QueryLatent => latent.query_rank.unwrap_or(0),
            Role::KeyValueLatent => latent.rank,
            Role::TurningKey => latent.turning_dim,
            Role::O | Role::Down => config.hidden_size,
            Role::Gate | Role::Up => width,
            Role::AttentionGate => config.n_heads * layer.value_head_dim,
            Role::Router | Role::SharedGate => unreachable!("they have linears of their own"),
            Role::OutputGate
            | Role::X
            | Role::B
            | Role::C
            | Role::Beta
            | Role::Step
            | Role::MixerOutput => self.mixer_rows(role),
        }
    }

    pub(super) fn linear(
        &self,
        spec: &LinearSpec,
        has_bias: bool,
        in_features: usize,
    ) -> LinearPlan {
        self.linear_of_width(spec, has_bias, in_features, self.layer.intermediate_size)
    }

    /// A linear of an MLP whose width is not that of the model's.
    pub(super) fn linear_of_width(
        &self,
        spec: &LinearSpec,
        has_bias: bool,
        in_features: usize,
        width: usize,
    ) -> LinearPlan {
        let groups = match spec.split {
            Split::Blocks => 1,
            Split::Heads => self.layer.n_kv_heads,
            Split::QueryHeads => self.config.n_heads,
            Split::Fourths => 4,
            Split::Groups => self.config.mixer.map_or(1, |mixer| mixer.n_groups),
        };
        let out_features = spec.parts.iter();
        let out_features = out_features
            .map(|&role| self.rows_of_width(role, width))
            .sum();
        let mut end = 0;
        let parts = spec.parts.iter().map(|&role| {
            let (start, run) = (end, self.rows_of_width(role, width) / groups);
            end += run;
            let rows = Rows {
                start,
                run,
                groups,
                stride: out_features / groups,
            };
            (role, rows)
        });
        LinearPlan {
            name: format!("{}.{}", self.prefix, spec.name),
            out_features,
            in_features,
            has_bias,
            parts: parts.collect(),
            stored: if self.arch.transposed {
                Stored::Transposed
            } else {
                Stored::Own
            },
            in_float: false,
        }
    }

    pub(super) fn linears(&self, specs: &[LinearSpec], has_bias: bool) -> Vec<LinearPlan> {
        let linears = specs
            .iter()
            .map(|spec| self.linear(spec, has_bias, self.config.hidden_size));
        linears.collect()
    }

    /// What stages that read the residual stream read, and where their scale can go.
    pub(super) fn input(&self, site: NormSite) -> (StageInput, Fold) {
        // In parallel layers one norm may serve both; where an MLP is all that a layer has, its norm has no other name.
        let is_shared = self.config.parallel || !(self.layer.attention || self.layer.mixer);
        let site = if site == NormSite::Mlp && !self.has(site) && is_shared {
            NormSite::Attention
        } else {
            site
        };
        if !self.has(site) {
            (StageInput::Hidden, Fold::None)
        } else if self.arch.norm.has_weight() {
            (StageInput::Norm(site), Fold::Norm(site))
        } else {
            (StageInput::Norm(site), Fold::None)
        }
    }

    /// Whether its attention reads an earlier layer's keys and values.
    fn borrows(&self) -> bool {
        matches!(self.layer.keys_values, KeysValues::Borrowed { .. })
    }

    /// The stages that add what the layer takes of its tokens themselves. Their linears are narrow, and stay in float.
    pub(super) fn layer_input(&self, row: LayerInput, config: LayerInputConfig) -> [Stage; 2] {
        let (hidden, width) = (self.config.hidden_size, config.width);
        let stage = |name, input, dense: LinearPlan, mix| Stage {
            name,
            input,
            in_features: dense.in_features,
            linears: Vec::new(),
            dense: vec![dense],
            experts: Vec::new(),
            mixes: vec![mix],
            fold: Fold::None,
            remakable: false,
        };
        [
            stage(
                "layer input gate",
                StageInput::Hidden,
                self.small(row.gate, Role::Gate, [width, hidden], false),
                Mix::LayerInput,
            ),
            stage(
                "layer input",
                StageInput::Slot(Slot::Activated),
                self.small(row.projection, Role::Down, [hidden, width], false),
                self.residual(NormSite::AfterLayerInput),
            ),
        ]
    }

    /// The norm there, if there is one.
    pub(super) fn site(&self, site: NormSite) -> Option<NormSite> {
        self.has(site).then_some(site)
    }

    pub(super) fn residual(&self, site: NormSite) -> Mix {
        match site {
            NormSite::AfterAttention if self.layer.looks => Mix::GatedResidual,
            NormSite::AfterMlp if self.layer.looks => Mix::GatedResidualWhereSeen,
            _ => Mix::Residual(self.site(site)),
        }
    }

    /// The stages before attention's output, and that one.
    pub(super) fn attention(&self, attention: &Attention) -> (Vec<Stage>, Stage) {
        let mut linears = self.linears(attention.inputs, self.config.biases.attention);
        let computes = |role: Role| match role {
            Role::K => !self.borrows(),
            Role::V => !self.borrows() && !self.layer.values_are_keys,
            _ => true,
        };
        linears.retain(|linear| linear.parts.iter().any(|part| computes(part.0)));
        let lent = match self.layer.window {
            None => [Slot::Keys, Slot::Values],
            Some(_) => [Slot::WindowedKeys, Slot::WindowedValues],
        };
        let mix = match self.layer.keys_values {
            KeysValues::Own => Mix::Attention,
            KeysValues::Lent => Mix::LendingAttention(lent),
            KeysValues::Borrowed { last } => Mix::BorrowingAttention { lent, last },
        };
        let (input, fold) = self.input(NormSite::Attention);
        // A scale is for what is quantized: none goes into linears that stay in float, or into the norm before them alone.
        let (linears, dense, fold) = if attention.float_inputs {
            (Vec::new(), linears, Fold::None)
        } else {
            (linears, Vec::new(), fold)
        };
        let output = self.attention_output(attention, &linears);
        let inputs = Stage {
            name: "attention inputs",
            input,
            in_features: self.config.hidden_size,
            linears,
            dense,
            experts: Vec::new(),
            mixes: vec![mix],
            fold,
            remakable: false,
        };
        (vec![inputs], output)
    }

    /// [`Self::attention`] by way of latents.
    pub(super) fn latent_attention(
        &self,
        attention: &Attention,
        latent: &Latent,
    ) -> (Vec<Stage>, Stage) {
        let config = self.config;
        let (hidden_size, has_bias) = (config.hidden_size, config.biases.attention);
        let made_of = |site, slot| (StageInput::NormOf(site, slot), Fold::Norm(site));
        let stage = |name, (input, fold), linear: LinearPlan, mixes| Stage {
            name,
            input,
            in_features: linear.in_features,
            linears: vec![linear],
            dense: Vec::new(),
            experts: Vec::new(),
            mixes,
            fold,
            remakable: false,
        };
        let has_query_latent = self.has(NormSite::QueryLatent);
        let (query, query_has_bias, kept) = if has_query_latent {
            let kept = Mix::Keep(Role::QueryLatent, Slot::QueryLatent);
            (&latent.query_down, has_bias, kept)
        } else {
            (&latent.query, false, Mix::Keep(Role::Q, Slot::Query))
        };
        let mut inputs = stage(
            "attention inputs",
            self.input(NormSite::Attention),
            self.linear(query, query_has_bias, hidden_size),
            vec![
                kept,
                Mix::Keep(Role::KeyValueLatent, Slot::KeyValueLatent),
                Mix::Keep(Role::TurningKey, Slot::TurningKey),
            ],
        );
        let down = self.linear(&latent.key_value_down, has_bias, hidden_size);
        inputs.linears.push(down);
        let mut stages = vec![inputs];
        if has_query_latent {
            stages.push(stage(
                "queries",
                made_of(NormSite::QueryLatent, Slot::QueryLatent),
                self.linear(&latent.query_up, false, self.rows(Role::QueryLatent)),
                vec![Mix::Keep(Role::Q, Slot::Query)],
            ));
        }
        let up = self.linear(&latent.key_value_up, false, self.rows(Role::KeyValueLatent));
        let output = self.attention_output(attention, std::slice::from_ref(&up));
        stages.push(stage(
            "keys and values",
            made_of(NormSite::KeyValueLatent, Slot::KeyValueLatent),
            up,
            vec![Mix::LatentAttention],
        ));
        (stages, output)
    }

    /// `linears` compute V among others, unless that stays in float.
    pub(super) fn attention_output(&self, attention: &Attention, linears: &[LinearPlan]) -> Stage {
        let config = self.config;
        let (n_heads, n_kv_heads) = (config.n_heads, self.layer.n_kv_heads);
        let value_dim = self.layer.value_head_dim;
        let value_row = |channel: usize| {
            let (head, dim) = (channel / value_dim, channel % value_dim);
            head * n_kv_heads / n_heads * value_dim + dim
        };
        let width = n_heads * value_dim;
        // A bound that values are clipped to and a norm of them let no factor pass.
        let fold = if config.qkv_clip.is_some() || attention.value_norm {
            Fold::None
        } else {
            fold_into(linears, Role::V, (0..width).map(value_row), false)
        };
        Stage {
            name: "attention output",
            input: StageInput::Slot(Slot::Attended),
            in_features: width,
            linears: vec![self.linear(&attention.output, config.biases.attention_output, width)],
            dense: Vec::new(),
            experts: Vec::new(),
            mixes: vec![self.residual(NormSite::AfterAttention)],
            fold,
            remakable: false,
        }
    }

    /// Where a scale of what `linears`, an MLP's of this width, and the activation after them make goes.
    pub(super) fn fold_into_up(&self, linears: &[LinearPlan], width: usize) -> Fold {
        // What an activation bends, no factor passes; but relu's squares, like relu's values, are proportional.
        let root = match self.config.activation {
            Activation::ClampedSwiglu { .. } | Activation::Xielu => return Fold::None,
            _ if is_gated(linears) => false,
            Activation::Relu => false,
            Activation::Relu2 => true,
            Activation::Silu | Activation::Gelu | Activation::QuickGelu | Activation::GeluTanh => {
                return Fold::None;
            }
        };
        fold_into(linears, Role::Up, 0..width, root)
    }

    pub(super) fn mlp(&self, mlp: &Mlp) -> [Stage; 2] {
        let config = self.config;
        let linears = self.linears(mlp.inputs, config.biases.mlp);
        let width = self.layer.intermediate_size;
        let output_fold = self.fold_into_up(&linears, width);
        let (input, fold) = self.input(NormSite::Mlp);
        [
            Stage {
                name: "MLP inputs",
                input,
                in_features: config.hidden_size,
                mixes: vec![mlp_mix(&linears)],
                linears,
                dense: Vec::new(),
                experts: Vec::new(),
                fold,
                remakable: !config.parallel,
            },
            Stage {
                name: "MLP output",
                input: StageInput::Slot(Slot::Activated),
                in_features: width,
                linears: vec![self.linear(&mlp.output, config.biases.mlp, width)],
                dense: Vec::new(),
                experts: Vec::new(),
                mixes: vec![self.residual(NormSite::AfterMlp)],
                fold: output_fold,
                remakable: false,
            },
        ]
    }
}

/// Whether one of an MLP's first linears computes a gate.
fn is_gated(linears: &[LinearPlan]) -> bool {
    let mut parts = linears.iter().flat_map(|linear| &linear.parts);
    parts.any(|part| part.0 == Role::Gate)
}

/// What follows an MLP's first linears.
pub(super) fn mlp_mix(linears: &[LinearPlan]) -> Mix {
    if is_gated(linears) {
        Mix::GatedMlp
    } else {
        Mix::PlainMlp
    }
}

/// A fold into the part `role` of one of `linears`: `channels` gives the part's row behind each input channel.
pub(super) fn fold_into(
    linears: &[LinearPlan],
    role: Role,
    channels: impl Iterator<Item = usize>,
    root: bool,
) -> Fold {
    let found = linears.iter().find_map(|linear| {
        let part = linear.parts.iter().find(|part| part.0 == role)?;
        Some((linear, part.1))
    });
    match found {
        None => Fold::None,
        Some((linear, part)) => Fold::Rows {
            linear: linear.name.clone(),
            rows: channels.map(|channel| part.row(channel)).collect(),
            root,
        },
    }
}
