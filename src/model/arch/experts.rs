//! What a row says of a mixture of experts.

use super::{Bias, LinearSpec, Role, linear};

/// The mixture of experts that some layers have in the MLP's place. Its numbers are `num_experts`, `num_experts_per_tok`
/// and `moe_intermediate_size` in the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub layers: SparseLayers,
    pub router: Router,
    /// An expert's gate and what it is multiplied with.
    pub inputs: &'static [ExpertLinear],
    pub output: ExpertLinear,
    pub bias: Bias,
    /// What every token goes through besides.
    pub shared: Option<Shared>,
    /// Whether the layer's MLP runs beside them, each with norms of its own before and after it.
    pub beside_mlp: bool,
}

/// Which layers have experts; a list `mlp_layer_types` in the config says it better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparseLayers {
    All,
    /// All, if this key is true.
    AllIf(&'static str),
    /// From the number that this key holds on.
    From(&'static str),
    /// Every so many-th, from one number to another: as these keys say.
    Between {
        first: &'static str,
        last: &'static str,
        interval: &'static str,
    },
    /// Those of a list or, without it, every so many-th: as these keys say.
    Listed {
        list: &'static str,
        interval: &'static str,
    },
    /// Every `decoder_sparse_step`th, but for those of the list `mlp_only_layers`.
    SparseStep,
}

/// How a token's experts are chosen and weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// Inside the layer, without `.weight`.
    pub name: &'static str,
    pub bias: Bias,
    pub scoring: Scoring,
    /// What is added to the scores for the choice alone.
    pub correction: Option<Correction>,
    /// Whether the chosen ones' scores are divided by their sum.
    pub renormalize: Bias,
    /// Whether only some of `n_group` groups of experts may be chosen from, and how these are found.
    pub groups: Option<GroupScore>,
    /// The key of what the weights are multiplied by.
    pub scaling: Option<&'static str>,
    /// The tensor of what each expert's weight is multiplied by: inside the layer, the whole name.
    pub expert_scale: Option<&'static str>,
}

/// A tensor of one number for each expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Correction {
    /// Inside the layer, the whole name.
    pub name: &'static str,
    /// Whether it has a dimension of 1 before.
    pub is_row: bool,
}

/// What a router makes of its linear's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    Softmax,
    Sigmoid,
    /// Sigmoids of the best; the experts' inputs are multiplied by them, not their outputs.
    SigmoidOfInput,
    /// SparseMixer of two experts (Liu et al. 2024, arXiv:2409.12136): each one's probability among those that come near
    /// it, as `router_jitter_noise` says.
    SparseMixer,
}

/// What a group of experts is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// The best score in it, if `topk_method` is `group_limited_greedy`; else all groups are as good.
    BestIfLimited,
    /// The sum of the two best.
    BestTwo,
}

/// A linear that each expert has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertLinear {
    /// As it is written: inside the layer, without `.weight`, `{}` for the expert's number.
    pub name: &'static str,
    pub part: Role,
    /// Where it is read from, if that is a tensor of all experts.
    pub stack: Option<Stack>,
}

/// A tensor that holds a linear, or gate and up together, of all experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stack {
    /// Inside the layer, the whole name.
    pub weight: &'static str,
    pub bias: &'static str,
    /// Whether an expert's part is `[in, out]`.
    pub transposed: bool,
    /// Whether the experts have no dimension of their own.
    pub flat: bool,
    pub rows: StackRows,
}

/// Which of a part's rows are the linear's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackRows {
    All,
    FirstHalf,
    SecondHalf,
    Even,
    Odd,
}

/// An MLP beside the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    pub inputs: &'static [LinearSpec],
    pub output: LinearSpec,
    pub width: SharedWidth,
    /// A linear of one row, without `.weight`, whose sigmoid its output is multiplied by.
    pub gate: Option<&'static str>,
}

/// How wide a shared expert is; there is none where that is 0 or the key absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedWidth {
    /// This key's value.
    By(&'static str),
    /// As so many experts as this key says.
    Experts(&'static str),
}

/// A linear under this name for each expert.
pub const fn expert(name: &'static str, part: Role) -> ExpertLinear {
    ExpertLinear {
        name,
        part,
        stack: None,
    }
}

/// What every token goes through besides, under the names of DeepSeek's; as wide as so many experts as `key` says.
pub const fn shared_experts(key: &'static str) -> Shared {
    const INPUTS: &[LinearSpec] = &[
        linear("mlp.shared_experts.gate_proj", &[Role::Gate]),
        linear("mlp.shared_experts.up_proj", &[Role::Up]),
    ];
    Shared {
        inputs: INPUTS,
        output: linear("mlp.shared_experts.down_proj", &[Role::Down]),
        width: SharedWidth::Experts(key),
        gate: None,
    }
}

/// A router that takes sigmoids, adds a correction for the choice, and divides the chosen ones' by their sum.
pub const fn sigmoid_router(name: &'static str, correction: &'static str) -> Router {
    Router {
        name,
        bias: Bias::Never,
        scoring: Scoring::Sigmoid,
        correction: Some(Correction {
            name: correction,
            is_row: false,
        }),
        renormalize: Bias::Always,
        groups: None,
        scaling: None,
        expert_scale: None,
    }
}

/// DeepSeek V3's router and its relatives': sigmoids, a correction, groups, and a factor.
pub const fn deepseek_router() -> Router {
    Router {
        renormalize: Bias::If("norm_topk_prob"),
        groups: Some(GroupScore::BestTwo),
        scaling: Some("routed_scaling_factor"),
        ..sigmoid_router("mlp.gate", "mlp.gate.e_score_correction_bias")
    }
}

/// The same, read from a tensor of all experts.
pub const fn stacked(name: &'static str, part: Role, stack: Stack) -> ExpertLinear {
    ExpertLinear {
        name,
        part,
        stack: Some(stack),
    }
}

/// Experts in every layer under the names that most families have, chosen and weighed as `router` says.
pub const fn llama_experts(router: Router) -> Experts {
    const INPUTS: &[ExpertLinear] = &[
        expert("mlp.experts.{}.gate_proj", Role::Gate),
        expert("mlp.experts.{}.up_proj", Role::Up),
    ];
    Experts {
        layers: SparseLayers::All,
        router,
        inputs: INPUTS,
        output: expert("mlp.experts.{}.down_proj", Role::Down),
        bias: Bias::Never,
        shared: None,
        beside_mlp: false,
    }
}

/// [`llama_experts`] stored as two tensors of all experts, gate's rows before up's.
pub const fn stacked_experts(router: Router) -> Experts {
    const GATE: Stack = Stack {
        weight: "mlp.experts.gate_up_proj",
        bias: "",
        transposed: false,
        flat: false,
        rows: StackRows::FirstHalf,
    };
    const UP: Stack = Stack {
        rows: StackRows::SecondHalf,
        ..GATE
    };
    const DOWN: Stack = Stack {
        weight: "mlp.experts.down_proj",
        rows: StackRows::All,
        ..GATE
    };
    const INPUTS: &[ExpertLinear] = &[
        stacked("mlp.experts.{}.gate_proj", Role::Gate, GATE),
        stacked("mlp.experts.{}.up_proj", Role::Up, UP),
    ];
    Experts {
        inputs: INPUTS,
        output: stacked("mlp.experts.{}.down_proj", Role::Down, DOWN),
        ..llama_experts(router)
    }
}

/// A router that takes the softmax over all experts; the best ones' probabilities are their weights.
pub const fn softmax_router(name: &'static str, renormalize: Bias) -> Router {
    Router {
        name,
        bias: Bias::Never,
        scoring: Scoring::Softmax,
        correction: None,
        renormalize,
        groups: None,
        scaling: None,
        expert_scale: None,
    }
}
