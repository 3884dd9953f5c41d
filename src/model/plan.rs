//! What each layer computes and which tensors it has: the family's row and the model's numbers, resolved.

mod cross;
mod experts;
mod mixer;
mod resolver;

pub use experts::ExpertPlan;
use resolver::{Resolver, fold_into, mlp_mix};

use super::Config;
use super::arch::{Architecture, NormKind, NormSite, Role};
use super::config::LayerConfig;
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
    /// Linears that read the same input and stay in float: routers, gates of a few rows, what loaders take in float only.
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
    /// All linears but those that are in float by nature, its experts' too.
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
        !(self.mixes.iter()).any(|mix| mix.is_attention() || *mix == Mix::Mixer)
    }

    /// The slots that its mixing steps fill, and how wide, in the order of [`Slot::ALL`].
    pub fn fills(&self) -> Vec<(Slot, usize)> {
        let mut filled: Vec<_> = (self.mixes.iter().filter_map(|mix| match *mix {
            Mix::Attention | Mix::LendingAttention(_) | Mix::BorrowingAttention { .. } => {
                Some((Slot::Attended, self.width(Role::Q)))
            }
            Mix::LatentAttention => Some((Slot::Attended, self.width(Role::V))),
            Mix::CrossAttention { width } => Some((Slot::Attended, width)),
            Mix::Mixer => Some((Slot::Mixed, self.width(Role::X))),
            Mix::Keep(role, slot) => Some((slot, self.width(role))),
            Mix::GatedMlp | Mix::PlainMlp => Some((Slot::Activated, self.width(Role::Up))),
            Mix::Route => Some((Slot::Routes, self.width(Role::Router))),
            Mix::SharedGate => Some((Slot::SharedGate, 1)),
            Mix::SharedExpert => Some((Slot::Added, self.out_features())),
            Mix::BesideExperts(_) => Some((Slot::BesideExperts, self.out_features())),
            Mix::LayerInput => Some((Slot::Activated, self.width(Role::Gate))),
            Mix::Experts(_)
            | Mix::Residual(_)
            | Mix::GatedResidual
            | Mix::GatedResidualWhereSeen
            | Mix::LayerScale => None,
        }))
        .collect();
        for mix in &self.mixes {
            if let Mix::LendingAttention(slots) = mix {
                filled.extend(slots.map(|slot| (slot, self.width(Role::K))));
            }
        }
        filled.sort_by_key(|filled| filled.0 as usize);
        filled
    }

    /// The slots that no stage after it reads, but it does.
    pub fn empties(&self) -> Vec<Slot> {
        let mut emptied: Vec<Slot> = self.input.slot().into_iter().collect();
        for mix in &self.mixes {
            match mix {
                Mix::LatentAttention => emptied.extend([Slot::Query, Slot::TurningKey]),
                Mix::CrossAttention { .. } => emptied.push(Slot::Query),
                Mix::GatedResidualWhereSeen => emptied.push(Slot::Sees),
                Mix::BorrowingAttention { lent, last: true } => emptied.extend(*lent),
                Mix::SharedExpert => emptied.push(Slot::SharedGate),
                Mix::Experts(_) => {
                    emptied.extend([Slot::Routes, Slot::Added, Slot::BesideExperts]);
                }
                Mix::LayerInput => emptied.push(Slot::LayerInput),
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
    /// What each expert's weight is multiplied by, `[experts]`.
    ExpertScale,
    /// What the residual stream is multiplied by after the layer, `[1]`.
    LayerScale,
    /// What attention to images adds is multiplied by the tanh of this, `[1]`.
    AttentionGate,
    /// What the MLP behind it adds, likewise.
    MlpGate,
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
    /// What the tower and the projector make of images.
    Images,
}

impl StageInput {
    /// The slot that it comes from.
    pub fn slot(self) -> Option<Slot> {
        match self {
            Self::Slot(slot) | Self::NormOf(_, slot) => Some(slot),
            Self::Hidden | Self::Norm(_) | Self::Images => None,
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
    /// What the MLP beside experts adds to the residual stream, `[B, T, hidden]`.
    BesideExperts,
    /// What the layer takes of its tokens themselves, `[B, T, hidden_size_per_layer_input]`. It is filled before the layer.
    LayerInput,
    /// Keys, as they are multiplied with queries, and values of all tokens so far that later layers without a window read,
    /// `[B, S, n_kv_heads * head_dim]`.
    Keys,
    Values,
    /// The same for layers with a window.
    WindowedKeys,
    WindowedValues,
    /// 1 for tokens that see an image, else 0, `[B, T, 1]`; where none does, the layers that attend to images change nothing.
    /// It is filled before these.
    Sees,
}

impl Slot {
    pub const ALL: [Self; 17] = [
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
        Self::BesideExperts,
        Self::LayerInput,
        Self::Keys,
        Self::Values,
        Self::WindowedKeys,
        Self::WindowedValues,
        Self::Sees,
    ];
}

/// What turns the outputs of a stage's linears into what later stages read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Causal self-attention over Q, K and V, or K once more where there is no V, into [`Slot::Attended`].
    Attention,
    /// The same; keys and values go into these slots too, for later layers.
    LendingAttention([Slot; 2]),
    /// Causal self-attention over Q and the keys and values that an earlier layer lent.
    BorrowingAttention {
        lent: [Slot; 2],
        /// Whether no later layer reads them.
        last: bool,
    },
    /// The same over [`Slot::Query`], K, completed by [`Slot::TurningKey`], and V.
    LatentAttention,
    /// Attention over [`Slot::Query`], and K and V of the images that a token sees, into [`Slot::Attended`] of so many channels.
    CrossAttention { width: usize },
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
    /// The only output, through a norm, into [`Slot::BesideExperts`].
    BesideExperts(NormSite),
    /// [`Slot::Added`] and [`Slot::BesideExperts`], through a norm where there is one, are added to the residual stream.
    Experts(Option<NormSite>),
    /// `act(gate)` times [`Slot::LayerInput`], into [`Slot::Activated`].
    LayerInput,
    /// The residual stream times what the layer stores for it.
    LayerScale,
    /// The only output, through a norm where there is one, is added to the residual stream.
    Residual(Option<NormSite>),
    /// The only output times the tanh of [`Kept::AttentionGate`] is added to the residual stream.
    GatedResidual,
    /// The same with [`Kept::MlpGate`], for tokens that see an image; [`Slot::Sees`] is empty then.
    GatedResidualWhereSeen,
}

impl Mix {
    pub fn is_attention(self) -> bool {
        matches!(
            self,
            Self::Attention
                | Self::LendingAttention(_)
                | Self::BorrowingAttention { .. }
                | Self::LatentAttention
                | Self::CrossAttention { .. }
        )
    }
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
    /// Whether it stays as it is, though others of its kind are quantized.
    pub in_float: bool,
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

    /// Whether it is one of those that elsewhere are quantized, so that readers expect it to be: then it runs as they do.
    /// Others that stay in float are small, run in float32, and decide much.
    pub fn is_projection(&self) -> bool {
        let mut parts = self.parts.iter();
        parts.any(|part| {
            use Role::{Down, Gate, K, Q, V};
            matches!(part.0, Q | K | V | Gate | Down)
        })
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
    /// Its tensors' names without `.weight` or `.bias`, where they have that.
    pub name: String,
    pub len: usize,
    /// Runs of the numbers that are normalized each by itself.
    pub groups: usize,
}

impl NormPlan {
    /// Its tensors, weight first.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let weight = (self.kind.has_weight()).then(|| self.kind.weight_name(&self.name));
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
        let [mut mlp, mut mlp_output] = resolver.mlp(&arch.mlp);
        let sparse = (arch.experts.as_ref()).zip(config.experts.as_ref());
        let sparse = sparse.filter(|(_, config)| config.layers[index]);
        let mut stages = if let Some((row, config)) = sparse {
            attention.extend(output);
            if row.beside_mlp {
                mlp_output.mixes = vec![Mix::BesideExperts(NormSite::BesideExperts)];
                attention.extend([mlp, mlp_output]);
            }
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
        if let (Some(row), Some(config)) = (arch.layer_input, config.layer_input) {
            stages.extend(resolver.layer_input(row, config));
        }
        if let (Some(_), Some(last)) = (arch.layer_scale, stages.last_mut()) {
            last.mixes.push(Mix::LayerScale);
        }
        Self {
            stages,
            norms: resolver.norms(),
            kept: resolver.kept(sparse),
            config: config.layers[index],
        }
    }

    /// All linears but those that are in float by nature, stage by stage.
    pub fn linears(&self) -> impl Iterator<Item = &LinearPlan> {
        self.stages.iter().flat_map(Stage::linears)
    }

    /// All linears that are quantized, stage by stage.
    pub fn quantized(&self) -> impl Iterator<Item = &LinearPlan> {
        self.linears().filter(|linear| !linear.in_float)
    }

    /// All linears that stay in float by nature, such as routers, stage by stage.
    pub fn dense(&self) -> impl Iterator<Item = &LinearPlan> {
        self.stages.iter().flat_map(|stage| &stage.dense)
    }

    /// All linears that stay in float, by nature or because the caller wants it.
    pub fn in_float(&self) -> impl Iterator<Item = &LinearPlan> {
        let chosen = self.linears().filter(|linear| linear.in_float);
        self.dense().chain(chosen)
    }

    /// Whether the scale of `stage`'s input is that of all experts' too: they read the same.
    pub fn scales_experts(&self, stage: &Stage) -> bool {
        let mut experts = self.stages.iter().filter(|stage| !stage.experts.is_empty());
        experts.any(|experts| experts != stage && experts.input == stage.input)
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
