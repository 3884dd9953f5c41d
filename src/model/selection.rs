//! Linears that stay in float though others of their kind are quantized: because the caller wants it so, or for lack of data.

use super::{ExpertPlan, LayerPlan, LinearPlan, Model, Role};

impl Model {
    /// Leaves those linears in float whose full names `in_float` holds for, and quantizes the others.
    pub fn leave_in_float(&mut self, in_float: &dyn Fn(&str) -> bool) {
        for layer in &mut self.layers {
            for stage in &mut layer.stages {
                let experts = stage.experts.iter_mut().flat_map(ExpertPlan::linears_mut);
                for linear in stage.linears.iter_mut().chain(experts) {
                    linear.in_float = in_float(&linear.name);
                }
            }
        }
    }

    /// Leaves those linears in float that read what images make, because there is none to calibrate them with.
    pub fn leave_unseen_in_float(&mut self) {
        let looking = (self.layers.iter_mut()).filter(|layer| layer.config.looks);
        let stages = looking.flat_map(|layer| &mut layer.stages);
        for linear in stages.flat_map(|stage| &mut stage.linears) {
            linear.in_float = true;
        }
    }

    /// The names of two linears that vLLM has as one, where only the second is quantized.
    pub fn torn(&self) -> Option<[&str; 2]> {
        self.layers.iter().find_map(LayerPlan::torn)
    }
}

impl LayerPlan {
    fn torn(&self) -> Option<[&str; 2]> {
        self.stages.iter().find_map(|stage| {
            let experts: Vec<&LinearPlan> = (stage.experts.iter())
                .flat_map(ExpertPlan::linears)
                .collect();
            let own: Vec<&LinearPlan> = stage.linears.iter().collect();
            let fused: [fn(Role) -> bool; 3] = [of_attention, of_mlp, of_mixer];
            (fused.iter().find_map(|fused| apart(&own, *fused)))
                .or_else(|| apart(&experts, |_| true))
        })
    }
}

/// The first of those `linears` that compute what is `fused` that is in float, and the first that is not, where there are both.
fn apart<'a>(linears: &[&'a LinearPlan], fused: fn(Role) -> bool) -> Option<[&'a str; 2]> {
    let first = |in_float| {
        let mut linears = linears.iter();
        let found = linears.find(|linear| {
            linear.in_float == in_float && linear.parts.iter().any(|part| fused(part.0))
        });
        found.map(|linear| &linear.name[..])
    };
    Some([first(true)?, first(false)?])
}

fn of_attention(role: Role) -> bool {
    use Role::{AttentionGate, K, KeyValueLatent, Q, QueryLatent, TurningKey, V};
    matches!(
        role,
        Q | K | V | QueryLatent | KeyValueLatent | TurningKey | AttentionGate
    )
}

fn of_mlp(role: Role) -> bool {
    matches!(role, Role::Gate | Role::Up)
}

fn of_mixer(role: Role) -> bool {
    matches!(role, Role::X | Role::B | Role::C | Role::OutputGate)
}
