//! What each layer computes and which tensors it has: the family's row and the model's numbers, resolved.

use std::ops::Range;

use super::Config;
use super::arch::{Architecture, Attention, Bias, LinearSpec, Mlp, NormSite, Role};

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// In the order in which they run. Every linear is in one of them.
    pub stages: Vec<Stage>,
    pub norms: Vec<NormPlan>,
    /// How many positions a token sees, itself included; `None` for all.
    pub window: Option<usize>,
}

/// Linears that read the same input, and the mixing steps after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub name: &'static str,
    pub input: StageInput,
    pub linears: Vec<LinearPlan>,
    pub mixes: Vec<Mix>,
    pub fold: Fold,
}

impl Stage {
    /// Width of what its linears read.
    pub fn in_features(&self) -> usize {
        self.linears[0].in_features
    }

    /// Rows of its linears that compute `role`.
    pub fn width(&self, role: Role) -> usize {
        let parts = self.linears.iter().flat_map(|linear| &linear.parts);
        let rows = parts.filter(|part| part.0 == role);
        rows.map(|part| part.1.len()).sum()
    }

    /// Whether its mixing steps treat every token by itself.
    pub fn is_tokenwise(&self) -> bool {
        !self.mixes.contains(&Mix::Attention)
    }

    /// Whether it makes nothing but the MLP's wide activations, which cost little to make again.
    pub fn makes_mlp_activations(&self) -> bool {
        self.mixes == [Mix::GatedMlp]
    }
}

/// What the linears of a stage read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageInput {
    /// A norm of the residual stream.
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
}

impl Slot {
    pub const ALL: [Self; 2] = [Self::Attended, Self::Activated];
}

/// What turns the outputs of a stage's linears into what later stages read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// Causal self-attention over Q, K, V, into [`Slot::Attended`].
    Attention,
    /// `act(gate) * up`, into [`Slot::Activated`].
    GatedMlp,
    /// The only output is added to the residual stream.
    Residual,
}

/// Where the inverse of a channel scale of a stage's input can be folded, leaving the layer's function unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fold {
    /// Into the norm's weight.
    Norm(NormSite),
    /// Into rows, and their bias, of an earlier stage's linear.
    Rows {
        /// The linear's name.
        linear: String,
        /// The row behind each input channel. Channels with one row must share one scale: query heads that share a
        /// value head do.
        rows: Vec<usize>,
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
    pub parts: Vec<(Role, Range<usize>)>,
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

/// One norm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormPlan {
    pub site: NormSite,
    /// Its tensor's name.
    pub name: String,
    pub len: usize,
}

impl LayerPlan {
    /// The layer `index` of a model.
    pub(super) fn new(arch: &Architecture, config: &Config, index: usize) -> Self {
        let resolver = Resolver {
            config,
            prefix: format!("{}.{index}", arch.layers),
        };
        let mut stages = resolver.attention(&arch.attention).to_vec();
        stages.extend(resolver.mlp(&arch.mlp));
        Self {
            stages,
            norms: (arch.norms.iter())
                .map(|&(site, name)| NormPlan {
                    site,
                    name: format!("{}.{name}.weight", resolver.prefix),
                    len: match site {
                        NormSite::Attention | NormSite::Mlp => config.hidden_size,
                        NormSite::Query | NormSite::Key => config.head_dim,
                    },
                })
                .collect(),
            window: config.windows[index],
        }
    }

    /// All linears, stage by stage.
    pub fn linears(&self) -> impl Iterator<Item = &LinearPlan> {
        self.stages.iter().flat_map(|stage| &stage.linears)
    }

    /// Every tensor of the layer with its shape: norms, biases, weights.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let norms = self
            .norms
            .iter()
            .map(|norm| (norm.name.clone(), vec![norm.len]));
        let biased = self.linears().filter(|linear| linear.has_bias);
        let biases = biased.map(|linear| (linear.bias_name(), vec![linear.out_features]));
        let weights = self
            .linears()
            .map(|linear| (linear.weight_name(), linear.shape().to_vec()));
        norms.chain(biases).chain(weights).collect()
    }
}

/// The numbers that names and shapes of one layer follow from.
struct Resolver<'a> {
    config: &'a Config,
    prefix: String,
}

impl Resolver<'_> {
    /// Rows that a role has.
    fn rows(&self, role: Role) -> usize {
        let config = self.config;
        match role {
            Role::Q => config.n_heads * config.head_dim,
            Role::K | Role::V => config.n_kv_heads * config.head_dim,
            Role::O | Role::Down => config.hidden_size,
            Role::Gate | Role::Up => config.intermediate_size,
        }
    }

    fn linear(&self, spec: &LinearSpec, bias: Bias, in_features: usize) -> LinearPlan {
        let mut end = 0;
        let parts = spec.parts.iter().map(|&role| {
            let start = end;
            end += self.rows(role);
            (role, start..end)
        });
        let parts = parts.collect();
        LinearPlan {
            name: format!("{}.{}", self.prefix, spec.name),
            out_features: end,
            in_features,
            has_bias: match bias {
                Bias::Never => false,
                Bias::Always => true,
                Bias::AttentionBias => self.config.attention_bias,
                Bias::MlpBias => self.config.mlp_bias,
            },
            parts,
        }
    }

    fn linears(&self, specs: &[LinearSpec], bias: Bias, in_features: usize) -> Vec<LinearPlan> {
        let linears = specs
            .iter()
            .map(|spec| self.linear(spec, bias, in_features));
        linears.collect()
    }

    /// Pre-norm attention that is added to the residual stream.
    fn attention(&self, attention: &Attention) -> [Stage; 2] {
        let config = self.config;
        let inputs = self.linears(attention.inputs, attention.bias, config.hidden_size);
        let (n_heads, n_kv_heads, head_dim) = (config.n_heads, config.n_kv_heads, config.head_dim);
        let value_row = |channel: usize| {
            let (head, dim) = (channel / head_dim, channel % head_dim);
            head * n_kv_heads / n_heads * head_dim + dim
        };
        let width = n_heads * head_dim;
        let fold = fold_into(&inputs, Role::V, (0..width).map(value_row));
        [
            Stage {
                name: "attention inputs",
                input: StageInput::Norm(NormSite::Attention),
                linears: inputs,
                mixes: vec![Mix::Attention],
                fold: Fold::Norm(NormSite::Attention),
            },
            Stage {
                name: "attention output",
                input: StageInput::Slot(Slot::Attended),
                linears: vec![self.linear(&attention.output, attention.output_bias, width)],
                mixes: vec![Mix::Residual],
                fold,
            },
        ]
    }

    /// A pre-norm gated MLP that is added to the residual stream.
    fn mlp(&self, mlp: &Mlp) -> [Stage; 2] {
        let config = self.config;
        let inputs = self.linears(mlp.inputs, mlp.bias, config.hidden_size);
        let fold = fold_into(&inputs, Role::Up, 0..config.intermediate_size);
        [
            Stage {
                name: "MLP inputs",
                input: StageInput::Norm(NormSite::Mlp),
                linears: inputs,
                mixes: vec![Mix::GatedMlp],
                fold: Fold::Norm(NormSite::Mlp),
            },
            Stage {
                name: "MLP output",
                input: StageInput::Slot(Slot::Activated),
                linears: vec![self.linear(&mlp.output, mlp.bias, config.intermediate_size)],
                mixes: vec![Mix::Residual],
                fold,
            },
        ]
    }
}

/// A fold into the part `role` of one of `linears`, whose row behind each channel `rows` gives.
fn fold_into(linears: &[LinearPlan], role: Role, rows: impl Iterator<Item = usize>) -> Fold {
    let found = linears.iter().find_map(|linear| {
        let part = linear.parts.iter().find(|part| part.0 == role)?;
        Some((linear, part.1.start))
    });
    match found {
        None => Fold::None,
        Some((linear, start)) => Fold::Rows {
            linear: linear.name.clone(),
            rows: rows.map(|row| start + row).collect(),
        },
    }
}
