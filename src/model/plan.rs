//! What each layer computes and which tensors it has: the family's row and the model's numbers, resolved.

mod experts;

pub use experts::ExpertPlan;

use super::Config;
use super::arch::{
    Architecture, Attention, LinearSpec, Mlp, NormKind, NormSite, QkNorm, Role, Split,
};
use super::config::{Activation, LayerConfig};
use super::stored::Stored;

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// In the order in which they run. Every linear is in one of them.
    pub stages: Vec<Stage>,
    pub norms: Vec<NormPlan>,
    /// A tensor that a router adds to its scores, `[experts]`: used, and kept byte for byte.
    pub correction: Option<(String, usize)>,
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

    /// Whether no later stage reads that slot.
    pub fn empties(&self, slot: Slot) -> bool {
        let by_mix = self.mixes.iter().any(|mix| match mix {
            Mix::SharedExpert => slot == Slot::SharedGate,
            Mix::Experts(_) => matches!(slot, Slot::Routes | Slot::Added),
            _ => false,
        });
        by_mix || self.input == StageInput::Slot(slot)
    }

    /// Whether its mixing steps treat every token by itself.
    pub fn is_tokenwise(&self) -> bool {
        !self.mixes.contains(&Mix::Attention)
    }
}

/// What the linears of a stage read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageInput {
    /// The residual stream.
    Hidden,
    /// A norm of it.
    Norm(NormSite),
    /// What a mixing step left there.
    Slot(Slot),
}

/// Where a mixing step leaves what another stage reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The heads' outputs, `[B, T, n_heads * head_dim]`.
    Attended,
    /// The MLP's wide activations, `[B, T, intermediate]`.
    Activated,
    /// What each expert's output is multiplied by, `[B, T, experts]`; 0 for those that the token does not go through.
    Routes,
    /// What the shared expert's output is multiplied by, `[B, T, 1]`.
    SharedGate,
    /// What the experts so far add to the residual stream, `[B, T, hidden]`.
    Added,
}

impl Slot {
    pub const ALL: [Self; 5] = [
        Self::Attended,
        Self::Activated,
        Self::Routes,
        Self::SharedGate,
        Self::Added,
    ];
}

/// What turns the outputs of a stage's linears into what later stages read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Causal self-attention over Q, K, V, into [`Slot::Attended`].
    Attention,
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
        };
        let [mut attention, output] = resolver.attention(&arch.attention);
        let [mut mlp, mlp_output] = resolver.mlp(&arch.mlp);
        let sparse = (arch.experts.as_ref()).zip(config.experts.as_ref());
        let sparse = sparse.filter(|(_, config)| config.layers[index]);
        let stages = if let Some((row, config)) = sparse {
            let experts = resolver.experts(row, config);
            [attention, output].into_iter().chain(experts).collect()
        } else if !config.parallel {
            vec![attention, output, mlp, mlp_output]
        } else if resolver.has(NormSite::Mlp) {
            // Both read the residual stream before either adds to it.
            vec![attention, mlp, output, mlp_output]
        } else {
            attention.name = "inputs";
            attention.linears.append(&mut mlp.linears);
            attention.mixes.append(&mut mlp.mixes);
            vec![attention, output, mlp_output]
        };
        Self {
            stages,
            norms: resolver.norms(),
            correction: sparse.and_then(|(row, config)| {
                let name = row.router.correction?;
                Some((format!("{}.{name}", resolver.prefix), config.count))
            }),
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

    /// Every tensor that the layer is read from, with its shape: norms, biases, weights.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let norms = self.norms.iter().flat_map(NormPlan::tensors);
        let linears = || self.linears().chain(self.dense());
        let biases = linears().filter_map(LinearPlan::bias_source);
        let weights = linears().map(LinearPlan::weight_source);
        let correction = self.correction.iter();
        let correction = correction.map(|(name, len)| (name.clone(), vec![*len]));
        norms
            .chain(correction)
            .chain(biases)
            .chain(weights)
            .collect()
    }
}

/// What names and shapes of one layer follow from.
struct Resolver<'a> {
    arch: &'a Architecture,
    config: &'a Config,
    prefix: String,
}

impl Resolver<'_> {
    fn has(&self, site: NormSite) -> bool {
        self.arch.norms.iter().any(|norm| norm.0 == site)
    }

    fn norms(&self) -> Vec<NormPlan> {
        let (config, qk_norm) = (self.config, self.arch.attention.qk_norm);
        let heads = |n_heads: usize| match qk_norm {
            QkNorm::Heads | QkNorm::TurnedHeads => config.head_dim,
            QkNorm::Whole => n_heads * config.head_dim,
        };
        let norms = self.arch.norms.iter().map(|&(site, name)| NormPlan {
            site,
            kind: self.arch.norm,
            name: format!("{}.{name}", self.prefix),
            len: match site {
                NormSite::Attention
                | NormSite::Mlp
                | NormSite::AfterAttention
                | NormSite::AfterMlp => config.hidden_size,
                NormSite::Query => heads(config.n_heads),
                NormSite::Key => heads(config.n_kv_heads),
            },
        });
        norms.collect()
    }

    /// Rows that a role has, in an MLP of this width.
    fn rows(&self, role: Role, width: usize) -> usize {
        let config = self.config;
        match role {
            Role::Q => config.n_heads * config.head_dim,
            Role::K | Role::V => config.n_kv_heads * config.head_dim,
            Role::O | Role::Down => config.hidden_size,
            Role::Gate | Role::Up => width,
            Role::Router | Role::SharedGate => unreachable!("they have linears of their own"),
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
        };
        let out_features = spec.parts.iter();
        let out_features = out_features.map(|&role| self.rows(role, width)).sum();
        let mut end = 0;
        let parts = spec.parts.iter().map(|&role| {
            let (start, run) = (end, self.rows(role, width) / groups);
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
            stored: Stored::Own,
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
        // In parallel layers one norm may serve both.
        let site = if site == NormSite::Mlp && !self.has(site) && self.config.parallel {
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

    fn attention(&self, attention: &Attention) -> [Stage; 2] {
        let config = self.config;
        let linears = self.linears(attention.inputs, config.biases.attention);
        let (n_heads, n_kv_heads, head_dim) = (config.n_heads, config.n_kv_heads, config.head_dim);
        let value_row = |channel: usize| {
            let (head, dim) = (channel / head_dim, channel % head_dim);
            head * n_kv_heads / n_heads * head_dim + dim
        };
        let width = n_heads * head_dim;
        let output_fold = fold_into(&linears, Role::V, (0..width).map(value_row), false);
        let (input, fold) = self.input(NormSite::Attention);
        [
            Stage {
                name: "attention inputs",
                input,
                in_features: config.hidden_size,
                linears,
                dense: Vec::new(),
                experts: Vec::new(),
                mixes: vec![Mix::Attention],
                fold,
                remakable: false,
            },
            Stage {
                name: "attention output",
                input: StageInput::Slot(Slot::Attended),
                in_features: width,
                linears: vec![self.linear(
                    &attention.output,
                    config.biases.attention_output,
                    width,
                )],
                dense: Vec::new(),
                experts: Vec::new(),
                mixes: vec![self.residual(NormSite::AfterAttention)],
                fold: output_fold,
                remakable: false,
            },
        ]
    }

    fn mlp(&self, mlp: &Mlp) -> [Stage; 2] {
        let config = self.config;
        let linears = self.linears(mlp.inputs, config.biases.mlp);
        let is_gated = (mlp.inputs.iter()).any(|linear| linear.parts.contains(&Role::Gate));
        // What an activation bends, no factor passes; but relu's squares, like relu's values, are proportional.
        let passes = match config.activation {
            _ if is_gated => Some(false),
            Activation::Relu => Some(false),
            Activation::Relu2 => Some(true),
            Activation::Silu | Activation::Gelu | Activation::GeluTanh => None,
        };
        let output_fold = match passes {
            None => Fold::None,
            Some(root) => fold_into(&linears, Role::Up, 0..config.intermediate_size, root),
        };
        let (input, fold) = self.input(NormSite::Mlp);
        let mix = if is_gated {
            Mix::GatedMlp
        } else {
            Mix::PlainMlp
        };
        [
            Stage {
                name: "MLP inputs",
                input,
                in_features: config.hidden_size,
                linears,
                dense: Vec::new(),
                experts: Vec::new(),
                mixes: vec![mix],
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
