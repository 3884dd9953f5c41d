//! What each layer computes and which tensors it has: the family's row and the model's numbers, resolved.

mod experts;
mod mixer;

pub use experts::ExpertPlan;

use super::Config;
use super::arch::{
    Architecture, Attention, Experts, Latent, LinearSpec, Mlp, NormKind, NormSite, QkNorm, Role,
    Split,
};
use super::config::{Activation, ExpertsConfig, LayerConfig};
use super::stored::Stored;

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// In the order in which they run. Every linear is in one of them.
    pub stages: Vec<Stage>,
    pub norms: Vec<NormPlan>,
    /// Tensors that are used as they are and kept byte for byte: the heads' sinks, what a router adds to its scores.
    pub kept: Vec<(Kept, String, Vec<usize>)>,
    pub config: LayerConfig,
}

/// Linears that read the same input, and the mixing steps after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub name: &'static str,
    pub input: StageInput,
    /// Width of what its linears read.
    pub in_features: usize,
    pub linears: Vec<LinearPlan>,
    /// Linears that read the same input and stay in float: routers, gates of a few rows.
    pub dense: Vec<LinearPlan>,
    /// Experts that the tokens routed to them go through; then it has no linears of its own.
    pub experts: Vec<ExpertPlan>,
    pub mixes: Vec<Mix>,
    pub fold: Fold,
    /// Whether it makes nothing but the MLP's wide activations, and the next stage alone reads them: they may be made again
    /// there instead of kept.
    pub remakable: bool,
}

impl Stage {
    /// All linears that are quantized, its experts' too.
    pub fn linears(&self) -> impl Iterator<Item = &LinearPlan> {
        let experts = self.experts.iter().flat_map(ExpertPlan::linears);
        self.linears.iter().chain(experts)
    }

    /// Rows of all its linears.
    pub fn out_features(&self) -> usize {
        self.linears.iter().map(|linear| linear.out_features).sum()
    }

    /// Rows of its linears, dense ones too, that compute `role`.
    pub fn width(&self, role: Role) -> usize {
        let linears = self.linears.iter().chain(&self.dense);
        let parts = linears.flat_map(|linear| &linear.parts);
        let rows = parts.filter(|part| part.0 == role);
        rows.map(|part| part.1.len()).sum()
    }

    /// Whether its mixing steps treat every token by itself.
    pub fn is_tokenwise(&self) -> bool {
        !(self.mixes.iter())
            .any(|mix| matches!(mix, Mix::Attention | Mix::LatentAttention | Mix::Mixer))
    }

    /// The slots that its mixing steps fill, and how wide, in the order of [`Slot::ALL`].
    pub fn fills(&self) -> Vec<(Slot, usize)> {
        let filled = self.mixes.iter().filter_map(|mix| match *mix {
            Mix::Attention => Some((Slot::Attended, self.width(Role::Q))),
            Mix::LatentAttention => Some((Slot::Attended, self.width(Role::V))),
            Mix::Mixer => Some((Slot::Mixed, self.width(Role::X))),
            Mix::Keep(role, slot) => Some((slot, self.width(role))),
            Mix::GatedMlp | Mix::PlainMlp => Some((Slot::Activated, self.width(Role::Up))),
            Mix::Route => Some((Slot::Routes, self.width(Role::Router))),
            Mix::SharedGate => Some((Slot::SharedGate, 1)),
            Mix::SharedExpert => Some((Slot::Added, self.out_features())),
            Mix::Experts(_) | Mix::Residual(_) => None,
        });
        let mut filled: Vec<_> = filled.collect();
        filled.sort_by_key(|filled| filled.0 as usize);
        filled
    }

    /// The slots that no stage after it reads, but it does.
    pub fn empties(&self) -> Vec<Slot> {
        let mut emptied: Vec<Slot> = self.input.slot().into_iter().collect();
        for mix in &self.mixes {
            match mix {
                Mix::LatentAttention => emptied.extend([Slot::Query, Slot::TurningKey]),
                Mix::SharedExpert => emptied.push(Slot::SharedGate),
                Mix::Experts(_) => emptied.extend([Slot::Routes, Slot::Added]),
                _ => {}
            }
        }
        emptied
    }
}

/// What a tensor that is kept byte for byte is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The heads' sinks, `[n_heads]`.
    Sinks,
    /// A number of xIELU's, `[1]` or without dimensions.
    Xielu(&'static str),
    /// What a router adds to its scores, `[experts]`, or with a dimension of 1 before it.
    Correction,
    /// The mixer's convolution, `[channels, 1, kernel]`.
    Convolution,
    /// `[channels]`
    ConvolutionBias,
    /// The logarithm of each head's decay, `[n_heads]`.
    Decay,
    /// What is added to each head's step, `[n_heads]`.
    StepBias,
    /// What each head's `X` is multiplied by on its way past the state, `[n_heads]`.
    Skip,
}

/// The numbers of a layer's xIELU, and their shapes.
const XIELU: [(&str, &[usize]); 4] = [
    ("alpha_p", &[1]),
    ("alpha_n", &[1]),
    ("beta", &[]),
    ("eps", &[]),
];

/// What the linears of a stage read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageInput {
    /// The residual stream.
    Hidden,
    /// A norm of it.
    Norm(NormSite),
    /// What a mixing step left there.
    Slot(Slot),
    /// A norm of what a mixing step left there.
    NormOf(NormSite, Slot),
}

impl StageInput {
    /// The slot that it comes from.
    pub fn slot(self) -> Option<Slot> {
        match self {
            Self::Slot(slot) | Self::NormOf(_, slot) => Some(slot),
            Self::Hidden | Self::Norm(_) => None,
        }
    }
}

/// Where a mixing step leaves what another stage reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The heads' outputs, `[B, T, n_heads * value_head_dim]`.
    Attended,
    /// The MLP's wide activations, `[B, T, intermediate]`.
    Activated,
    /// What each expert's output is multiplied by, `[B, T, experts]`; 0 for those that the token does not go through.
    Routes,
    /// What the shared expert's output is multiplied by, `[B, T, 1]`.
    SharedGate,
    /// What the experts so far add to the residual stream, `[B, T, hidden]`.
    Added,
    /// What the query is made of, `[B, T, q_lora_rank]`.
    QueryLatent,
    /// What keys and values are made of, `[B, T, kv_lora_rank]`.
    KeyValueLatent,
    /// The part of the key that turns, before it does, `[B, T, qk_rope_head_dim]`.
    TurningKey,
    /// `[B, T, n_heads * head_dim]`
    Query,
    /// What another mixer makes, before its norm where that is the last step, `[B, T, width]`.
    Mixed,
}

impl Slot {
    pub const ALL: [Self; 10] = [
        Self::Attended,
        Self::Activated,
        Self::Routes,
        Self::SharedGate,
        Self::Added,
        Self::QueryLatent,
        Self::KeyValueLatent,
        Self::TurningKey,
        Self::Query,
        Self::Mixed,
    ];
}

/// What turns the outputs of a stage's linears into what later stages read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Causal self-attention over Q, K, V, into [`Slot::Attended`].
    Attention,
    /// The same over [`Slot::Query`], K, completed by [`Slot::TurningKey`], and V.
    LatentAttention,
    /// The layer's other mixer, into [`Slot::Mixed`].
    Mixer,
    /// One of the outputs as it is, into this slot.
    Keep(Role, Slot),
    /// `act(gate) * up`, into [`Slot::Activated`].
    GatedMlp,
    /// `act(up)`, into [`Slot::Activated`].
    PlainMlp,
    /// The router's choice, into [`Slot::Routes`].
    Route,
    /// The shared expert's gate, into [`Slot::SharedGate`].
    SharedGate,
    /// The only output, gated where it has a gate, into [`Slot::Added`].
    SharedExpert,
    /// [`Slot::Added`], through a norm where there is one, is added to the residual stream.
    Experts(Option<NormSite>),
    /// The only output, through a norm where there is one, is added to the residual stream.
    Residual(Option<NormSite>),
}

/// Where the inverse of a channel scale of a stage's input can be folded, leaving the layer's function unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fold {
    /// Into the norm's weight and bias.
    Norm(NormSite),
    /// Into rows, and their bias, of an earlier stage's linear.
    Rows {
        /// The linear's name.
        linear: String,
        /// The row behind each input channel. Channels with one row must share one scale: query heads that share a
        /// value head do.
        rows: Vec<usize>,
        /// Whether the scale's root is what the rows are divided by, because they are squared on the way.
        root: bool,
    },
    /// Nowhere.
    None,
}

/// One linear as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearPlan {
    /// Its tensors' names without `.weight` or `.bias`: `model.layers.3.self_attn.q_proj`.
    pub name: String,
    pub out_features: usize,
    pub in_features: usize,
    pub has_bias: bool,
    /// The rows of each part.
    pub parts: Vec<(Role, Rows)>,
    pub stored: Stored,
}

impl LinearPlan {
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    pub fn bias_name(&self) -> String {
        format!("{}.bias", self.name)
    }

    /// `[out, in]`
    pub fn shape(&self) -> [usize; 2] {
        [self.out_features, self.in_features]
    }
}

/// Rows of a linear: a run of them in each of some groups of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// The first row in each group.
    pub start: usize,
    /// Rows in each group.
    pub run: usize,
    pub groups: usize,
    /// Rows of a group, all parts together.
    pub stride: usize,
}

impl Rows {
    /// All rows of a linear that has `len`.
    pub fn all(len: usize) -> Self {
        Self {
            start: 0,
            run: len,
            groups: 1,
            stride: len,
        }
    }

    pub fn len(self) -> usize {
        self.run * self.groups
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The `index`th of them.
    pub fn row(self, index: usize) -> usize {
        index / self.run * self.stride + self.start + index % self.run
    }
}

/// One norm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormPlan {
    pub site: NormSite,
    pub kind: NormKind,
    /// Its tensors' names without `.weight` or `.bias`.
    pub name: String,
    pub len: usize,
    /// Runs of the numbers that are normalized each by itself.
    pub groups: usize,
}

impl NormPlan {
    /// Its tensors, weight first.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let weight = (self.kind.has_weight()).then(|| format!("{}.weight", self.name));
        let bias = (self.kind.has_bias()).then(|| format!("{}.bias", self.name));
        let names = weight.into_iter().chain(bias);
        names.map(|name| (name, vec![self.len]))
    }
}

impl LayerPlan {
    /// The layer `index` of a model.
    pub(super) fn new(arch: &Architecture, config: &Config, index: usize) -> Self {
        let resolver = Resolver {
            arch,
            config,
            prefix: format!("{}.{index}", arch.layers),
            is_sparse: (config.experts.as_ref()).is_some_and(|experts| experts.layers[index]),
            layer: config.layers[index],
        };
        let (mut attention, output) = resolver.mixing();
        let [mut mlp, mlp_output] = resolver.mlp(&arch.mlp);
        let sparse = (arch.experts.as_ref()).zip(config.experts.as_ref());
        let sparse = sparse.filter(|(_, config)| config.layers[index]);
        let stages = if let Some((row, config)) = sparse {
            attention.extend(output);
            attention.extend(resolver.experts(row, config));
            attention
        } else if !resolver.layer.mlp {
            attention.extend(output);
            attention
        } else if !config.parallel {
            attention.extend(output);
            attention.extend([mlp, mlp_output]);
            attention
        } else if resolver.has(NormSite::Mlp) {
            // Both read the residual stream before either adds to it.
            attention.push(mlp);
            attention.extend(output);
            attention.push(mlp_output);
            attention
        } else {
            let first = &mut attention[0];
            first.name = "inputs";
            first.linears.append(&mut mlp.linears);
            first.mixes.append(&mut mlp.mixes);
            attention.extend(output);
            attention.push(mlp_output);
            attention
        };
        Self {
            stages,
            norms: resolver.norms(),
            kept: resolver.kept(sparse),
            config: config.layers[index],
        }
    }

    /// All linears that are quantized, stage by stage.
    pub fn linears(&self) -> impl Iterator<Item = &LinearPlan> {
        self.stages.iter().flat_map(Stage::linears)
    }

    /// All linears that stay in float, stage by stage.
    pub fn dense(&self) -> impl Iterator<Item = &LinearPlan> {
        self.stages.iter().flat_map(|stage| &stage.dense)
    }

    /// Every tensor that the layer is read from, with its shape: norms, sinks, biases, weights.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let norms = self.norms.iter().flat_map(NormPlan::tensors);
        let linears = || self.linears().chain(self.dense());
        let biases = linears().filter_map(LinearPlan::bias_source);
        let weights = linears().flat_map(LinearPlan::weight_sources);
        let kept = self.kept.iter();
        let kept = kept.map(|(_, name, shape)| (name.clone(), shape.clone()));
        norms.chain(kept).chain(biases).chain(weights).collect()
    }
}

/// What names and shapes of one layer follow from.
struct Resolver<'a> {
    arch: &'a Architecture,
    config: &'a Config,
    prefix: String,
    /// Whether it has experts.
    is_sparse: bool,
    layer: LayerConfig,
}

impl Resolver<'_> {
    fn has(&self, site: NormSite) -> bool {
        let asked_for = match site {
            NormSite::Query | NormSite::Key => self.config.qk_norm && self.layer.attention,
            NormSite::AfterExperts => self.is_sparse,
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

    fn kept(&self, sparse: Option<(&Experts, &ExpertsConfig)>) -> Vec<(Kept, String, Vec<usize>)> {
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
        let mut kept: Vec<_> = sinks.into_iter().chain(correction).collect();
        if self.config.activation == Activation::Xielu {
            for (name, shape) in XIELU {
                let stored = named(&format!("mlp.act_fn.{name}"));
                kept.push((Kept::Xielu(name), stored, shape.to_vec()));
            }
        }
        kept.extend(self.mixer_tensors());
        kept
    }

    fn norms(&self) -> Vec<NormPlan> {
        let (config, qk_norm) = (self.config, self.arch.attention.qk_norm);
        let heads = |n_heads: usize| match qk_norm {
            QkNorm::Heads | QkNorm::TurnedHeads | QkNorm::PlainTurnedHeads => config.head_dim,
            QkNorm::Whole => n_heads * config.head_dim,
        };
        let norms = self.arch.norms.iter().filter(|norm| self.has(norm.0));
        let norms = norms.map(|&(site, name)| NormPlan {
            site,
            kind: match (site, &self.arch.mixer) {
                (NormSite::Mixer, Some(mixer)) => mixer.norm,
                _ => self.arch.norm,
            },
            name: format!("{}.{name}", self.prefix),
            groups: self.norm_groups(site),
            len: match site {
                NormSite::Attention
                | NormSite::Mlp
                | NormSite::AfterAttention
                | NormSite::AfterMlp
                | NormSite::AfterExperts => config.hidden_size,
                NormSite::Query => heads(config.n_heads),
                NormSite::Key => heads(config.n_kv_heads),
                NormSite::QueryLatent => self.rows(Role::QueryLatent),
                NormSite::KeyValueLatent => self.rows(Role::KeyValueLatent),
                NormSite::Mixer => self.mixer_norm_len(),
            },
        });
        norms.collect()
    }

    /// Rows that a role has, in an MLP that is as wide as the model's.
    fn rows(&self, role: Role) -> usize {
        self.rows_of_width(role, self.config.intermediate_size)
    }

    /// Rows that a role has, in an MLP of this width.
    fn rows_of_width(&self, role: Role, width: usize) -> usize {
        let config = self.config;
        let latent = config.latent.unwrap_or_default();
        match role {
            Role::Q => config.n_heads * config.head_dim,
            Role::K => config.n_kv_heads * (config.head_dim - latent.turning_dim),
            Role::V => config.n_kv_heads * config.value_head_dim,
            Role::QueryLatent => latent.query_rank.unwrap_or(0),
            Role::KeyValueLatent => latent.rank,
            Role::TurningKey => latent.turning_dim,
            Role::O | Role::Down => config.hidden_size,
            Role::Gate | Role::Up => width,
            Role::AttentionGate => config.n_heads * config.value_head_dim,
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

    fn linear(&self, spec: &LinearSpec, has_bias: bool, in_features: usize) -> LinearPlan {
        self.linear_of_width(spec, has_bias, in_features, self.config.intermediate_size)
    }

    /// A linear of an MLP whose width is not that of the model's.
    fn linear_of_width(
        &self,
        spec: &LinearSpec,
        has_bias: bool,
        in_features: usize,
        width: usize,
    ) -> LinearPlan {
        let groups = match spec.split {
            Split::Blocks => 1,
            Split::Heads => self.config.n_kv_heads,
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
        }
    }

    fn linears(&self, specs: &[LinearSpec], has_bias: bool) -> Vec<LinearPlan> {
        let linears = specs
            .iter()
            .map(|spec| self.linear(spec, has_bias, self.config.hidden_size));
        linears.collect()
    }

    /// What stages that read the residual stream read, and where their scale can go.
    fn input(&self, site: NormSite) -> (StageInput, Fold) {
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

    /// The norm there, if there is one.
    fn site(&self, site: NormSite) -> Option<NormSite> {
        self.has(site).then_some(site)
    }

    fn residual(&self, site: NormSite) -> Mix {
        Mix::Residual(self.site(site))
    }

    /// The stages before attention's output, and that one.
    fn attention(&self, attention: &Attention) -> (Vec<Stage>, Stage) {
        let linears = self.linears(attention.inputs, self.config.biases.attention);
        let output = self.attention_output(attention, &linears);
        let (input, fold) = self.input(NormSite::Attention);
        let inputs = Stage {
            name: "attention inputs",
            input,
            in_features: self.config.hidden_size,
            linears,
            dense: Vec::new(),
            experts: Vec::new(),
            mixes: vec![Mix::Attention],
            fold,
            remakable: false,
        };
        (vec![inputs], output)
    }

    /// [`Self::attention`] by way of latents.
    fn latent_attention(&self, attention: &Attention, latent: &Latent) -> (Vec<Stage>, Stage) {
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

    /// `linears` compute V among others.
    fn attention_output(&self, attention: &Attention, linears: &[LinearPlan]) -> Stage {
        let config = self.config;
        let (n_heads, n_kv_heads) = (config.n_heads, config.n_kv_heads);
        let value_dim = config.value_head_dim;
        let value_row = |channel: usize| {
            let (head, dim) = (channel / value_dim, channel % value_dim);
            head * n_kv_heads / n_heads * value_dim + dim
        };
        let width = n_heads * value_dim;
        // A bound that values are clipped to lets no factor pass.
        let fold = match config.qkv_clip {
            None => fold_into(linears, Role::V, (0..width).map(value_row), false),
            Some(_) => Fold::None,
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
    fn fold_into_up(&self, linears: &[LinearPlan], width: usize) -> Fold {
        // What an activation bends, no factor passes; but relu's squares, like relu's values, are proportional.
        let root = match self.config.activation {
            Activation::ClampedSwiglu { .. } | Activation::Xielu => return Fold::None,
            _ if is_gated(linears) => false,
            Activation::Relu => false,
            Activation::Relu2 => true,
            Activation::Silu | Activation::Gelu | Activation::GeluTanh => return Fold::None,
        };
        fold_into(linears, Role::Up, 0..width, root)
    }

    fn mlp(&self, mlp: &Mlp) -> [Stage; 2] {
        let config = self.config;
        let linears = self.linears(mlp.inputs, config.biases.mlp);
        let output_fold = self.fold_into_up(&linears, config.intermediate_size);
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
                in_features: config.intermediate_size,
                linears: vec![self.linear(
                    &mlp.output,
                    config.biases.mlp,
                    config.intermediate_size,
                )],
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
fn mlp_mix(linears: &[LinearPlan]) -> Mix {
    if is_gated(linears) {
        Mix::GatedMlp
    } else {
        Mix::PlainMlp
    }
}

/// A fold into the part `role` of one of `linears`: `channels` gives the part's row behind each input channel.
fn fold_into(
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
