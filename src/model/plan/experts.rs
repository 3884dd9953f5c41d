//! What a layer with a mixture of experts consists of.

use super::{Fold, LinearPlan, Mix, Resolver, Role, Rows, Slot, Stage, StageInput, mlp_mix};
use crate::model::arch::{ExpertLinear, Experts, NormSite, StackRows};
use crate::model::config::ExpertsConfig;
use crate::model::stored::{Packing, Stacked, Stored};

/// One expert: linears that the tokens which were routed to it go through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertPlan {
    pub inputs: Vec<LinearPlan>,
    pub output: LinearPlan,
    /// Where a scale of `output`'s input goes.
    pub fold: Fold,
}

impl ExpertPlan {
    pub fn linears(&self) -> impl Iterator<Item = &LinearPlan> {
        self.inputs.iter().chain([&self.output])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut LinearPlan> {
        self.inputs.iter_mut().chain([&mut self.output])
    }
}

impl Resolver<'_> {
    /// The stages of a layer's experts: first what all tokens go through, last the experts.
    pub(super) fn experts(&self, row: &Experts, config: &ExpertsConfig) -> Vec<Stage> {
        let hidden = self.config.hidden_size;
        // Experts beside an MLP read through a norm of their own, and so does their router.
        let (router_input, input, fold) = if row.beside_mlp {
            let (input, fold) = self.input(NormSite::Experts);
            (self.input(NormSite::Router).0, input, fold)
        } else {
            let (input, fold) = self.input(NormSite::Mlp);
            (input, input, fold)
        };
        let mut dense = vec![self.small(
            row.router.name,
            Role::Router,
            [config.count, hidden],
            config.router_bias,
        )];
        let mut stages = Vec::new();
        let shared = row.shared.filter(|_| config.shared_width > 0);
        let mut first = Stage {
            name: if row.beside_mlp {
                "router"
            } else {
                "MLP inputs"
            },
            input: router_input,
            in_features: hidden,
            linears: Vec::new(),
            dense: Vec::new(),
            experts: Vec::new(),
            mixes: vec![Mix::Route],
            fold: if row.beside_mlp {
                Fold::None
            } else {
                fold.clone()
            },
            remakable: false,
        };
        if let Some(shared) = shared {
            let width = config.shared_width;
            let linears = shared.inputs.iter();
            first.linears = linears
                .map(|spec| self.linear_of_width(spec, self.config.biases.mlp, hidden, width))
                .collect();
            first.mixes.push(mlp_mix(&first.linears));
            if let Some(gate) = shared.gate {
                dense.push(self.small(gate, Role::SharedGate, [1, hidden], false));
                first.mixes.push(Mix::SharedGate);
            }
            stages.push(Stage {
                name: "shared expert output",
                input: StageInput::Slot(Slot::Activated),
                in_features: width,
                fold: self.fold_into_up(&first.linears, width),
                linears: vec![self.linear_of_width(
                    &shared.output,
                    self.config.biases.mlp,
                    width,
                    hidden,
                )],
                dense: Vec::new(),
                experts: Vec::new(),
                mixes: vec![Mix::SharedExpert],
                remakable: false,
            });
        }
        first.dense = dense;
        stages.insert(0, first);
        if row.beside_mlp {
            stages.push(Stage {
                name: "experts' inputs",
                input,
                in_features: hidden,
                linears: Vec::new(),
                dense: Vec::new(),
                experts: Vec::new(),
                mixes: Vec::new(),
                fold,
                remakable: false,
            });
        }
        let experts = (0..config.count).map(|index| {
            let linear = |linear, out, inp| self.expert_linear(linear, config, index, out, inp);
            let inputs = row.inputs.iter();
            let inputs: Vec<_> = inputs
                .map(|input| linear(input, config.width, hidden))
                .collect();
            ExpertPlan {
                fold: self.fold_into_up(&inputs, config.width),
                inputs,
                output: linear(&row.output, hidden, config.width),
            }
        });
        let after = self.site(NormSite::AfterExperts);
        let after = after.or_else(|| self.site(NormSite::AfterMlp));
        stages.push(Stage {
            name: "experts",
            input,
            in_features: hidden,
            linears: Vec::new(),
            dense: Vec::new(),
            experts: experts.collect(),
            mixes: vec![Mix::Experts(after)],
            fold: Fold::None,
            remakable: false,
        });
        stages
    }

    /// A linear of `[out, in]` that stays in float.
    pub(super) fn small(
        &self,
        name: &str,
        role: Role,
        [out_features, in_features]: [usize; 2],
        has_bias: bool,
    ) -> LinearPlan {
        LinearPlan {
            name: format!("{}.{name}", self.prefix),
            out_features,
            in_features,
            has_bias,
            parts: vec![(role, Rows::all(out_features))],
            stored: Stored::Own,
            in_float: false,
        }
    }

    fn expert_linear(
        &self,
        linear: &ExpertLinear,
        config: &ExpertsConfig,
        index: usize,
        out_features: usize,
        in_features: usize,
    ) -> LinearPlan {
        let name = linear.name.replace("{}", &index.to_string());
        let stored = linear.stack.map_or(Stored::Own, |stack| {
            let (rows, first, step) = match stack.rows {
                StackRows::All => (out_features, 0, 1),
                StackRows::FirstHalf => (2 * out_features, 0, 1),
                StackRows::SecondHalf => (2 * out_features, out_features, 1),
                StackRows::Even => (2 * out_features, 0, 2),
                StackRows::Odd => (2 * out_features, 1, 2),
            };
            let part = if stack.transposed {
                [in_features, rows]
            } else {
                [rows, in_features]
            };
            Stored::Stacked(Stacked {
                weight: format!("{}.{}", self.prefix, stack.weight),
                weight_shape: if stack.flat {
                    vec![config.count * part[0], part[1]]
                } else {
                    vec![config.count, part[0], part[1]]
                },
                bias: (!stack.bias.is_empty()).then(|| format!("{}.{}", self.prefix, stack.bias)),
                parts: config.count,
                index,
                transposed: stack.transposed,
                packing: Packing::Float,
                rows,
                first,
                step,
            })
        });
        LinearPlan {
            name: format!("{}.{name}", self.prefix),
            out_features,
            in_features,
            has_bias: config.bias,
            parts: vec![(linear.part, Rows::all(out_features))],
            stored,
            in_float: false,
        }
    }
}
