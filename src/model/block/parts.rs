//! What the linears of a stage make, by what it is to the mixing steps.

use crate::model::{Error, Role, Stage};
use tch::Tensor;

/// The outputs of a stage's linears, cut into what they are.
pub(super) struct Parts(Vec<(Role, Tensor)>);

impl Parts {
    pub fn cut(stage: &Stage, outputs: Vec<Tensor>) -> Result<Self, Error> {
        assert_eq!(
            outputs.len(),
            stage.linears.len() + stage.dense.len(),
            "stage {}: one output for each linear",
            stage.name
        );
        let mut parts = Vec::new();
        for (linear, output) in stage.linears.iter().chain(&stage.dense).zip(outputs) {
            if let [(role, _)] = linear.parts[..] {
                parts.push((role, output));
                continue;
            }
            for &(role, rows) in &linear.parts {
                // The last dimension as groups of rows.
                let groups = output.f_unflatten(-1, [rows.groups as i64, rows.stride as i64])?;
                let part = groups.f_narrow(-1, rows.start as i64, rows.run as i64)?;
                parts.push((role, part.f_flatten(-2, -1)?));
            }
        }
        Ok(Self(parts))
    }

    pub fn find(&mut self, role: Role) -> Option<Tensor> {
        let position = self.0.iter().position(|part| part.0 == role)?;
        Some(self.0.swap_remove(position).1)
    }

    pub fn take(&mut self, role: Role) -> Tensor {
        let found = self.find(role);
        found.unwrap_or_else(|| panic!("no linear of the stage computes {role:?}"))
    }

    pub fn only(&mut self) -> (Role, Tensor) {
        assert_eq!(self.0.len(), 1, "one output");
        self.0.remove(0)
    }
}
