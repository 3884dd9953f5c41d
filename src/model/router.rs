//! Which experts a token goes through, and what each of them counts.

use super::Error;
use super::arch::{self, GroupScore, Scoring};
use super::config::ExpertsConfig;
use tch::{Kind, Tensor};

/// A layer's router but for its linear.
#[derive(Debug)]
pub(super) struct Router {
    row: arch::Router,
    top_k: usize,
    renormalize: bool,
    scaling: Option<f64>,
    nearness: f64,
    groups: Option<(usize, usize)>,
    /// Added to the scores for the choice alone, `[experts]` float32.
    correction: Option<Tensor>,
    /// What each expert's weight is multiplied by, `[experts]` float32.
    expert_scale: Option<Tensor>,
}

impl Router {
    pub fn new(
        row: arch::Router,
        config: &ExpertsConfig,
        correction: Option<Tensor>,
        expert_scale: Option<Tensor>,
    ) -> Self {
        Self {
            row,
            top_k: config.top_k,
            renormalize: config.renormalize,
            scaling: config.scaling,
            nearness: config.nearness,
            groups: config.groups,
            correction,
            expert_scale,
        }
    }

    /// From the outputs of the router's linear, `[.., experts]` float32, what each expert's output is multiplied by: 0 for
    /// those that the token does not go through.
    pub fn weights(&self, logits: &Tensor) -> Result<Tensor, Error> {
        let scores = match self.row.scoring {
            Scoring::Softmax => logits.f_softmax(-1, Kind::Float)?,
            Scoring::Sigmoid | Scoring::SigmoidOfInput => logits.f_sigmoid()?,
            Scoring::SparseMixer => return self.sparse_mixer(logits),
        };
        let mut worth = match &self.correction {
            Some(correction) => scores.f_add(correction)?,
            None => scores.shallow_clone(),
        };
        if let (Some((n_groups, kept)), Some(by)) = (self.groups, self.row.groups) {
            worth = within_groups(&worth, n_groups, kept, by)?;
        }
        let (_, chosen) = worth.f_topk(self.top_k as i64, -1, true, false)?;
        let mut weights = scores.f_gather(-1, &chosen, false)?;
        if self.renormalize {
            let sum = weights.f_sum_dim_intlist(-1, true, Kind::Float)?;
            // As transformers has it where scores may all vanish.
            weights = weights.f_div(&sum.f_add_scalar(1e-20)?)?;
        }
        if let Some(factor) = self.scaling {
            weights = weights.f_mul_scalar(factor)?;
        }
        let weights = scores.f_zeros_like()?.f_scatter(-1, &chosen, &weights)?;
        Ok(match &self.expert_scale {
            None => weights,
            Some(scale) => weights.f_mul(scale)?,
        })
    }
}

impl Router {
    /// Whether [`Self::weights`] are those of the experts' inputs, not of their outputs.
    pub fn weighs_input(&self) -> bool {
        self.row.scoring == Scoring::SigmoidOfInput
    }

    fn sparse_mixer(&self, logits: &Tensor) -> Result<Tensor, Error> {
        let mut weights = logits.f_zeros_like()?;
        let mut open = logits.shallow_clone();
        for _ in 0..self.top_k {
            let (best, chosen) = open.f_max_dim(-1, true)?;
            let distance = best.f_sub(logits)?;
            let far = (distance.f_div(&logits.f_abs()?.f_maximum(&best)?)?).f_gt(self.nearness)?;
            let near = open.f_masked_fill(&far, f64::NEG_INFINITY)?;
            let weight = near
                .f_softmax(-1, Kind::Float)?
                .f_gather(-1, &chosen, false)?;
            weights = weights.f_scatter(-1, &chosen, &weight)?;
            open = open.f_scatter_value(-1, &chosen, f64::NEG_INFINITY)?;
        }
        Ok(weights)
    }
}

/// `worth` with minus infinity in all but the best groups.
fn within_groups(
    worth: &Tensor,
    n_groups: usize,
    kept: usize,
    by: GroupScore,
) -> Result<Tensor, Error> {
    let grouped = worth.f_unflatten(-1, [n_groups as i64, -1])?;
    let best = match by {
        GroupScore::BestIfLimited => grouped.f_amax(-1, false)?,
        GroupScore::BestTwo => {
            let (best, _) = grouped.f_topk(2, -1, true, false)?;
            best.f_sum_dim_intlist(-1, false, Kind::Float)?
        }
    };
    let (_, groups) = best.f_topk(kept as i64, -1, true, false)?;
    let open = best.f_zeros_like()?.f_scatter_value(-1, &groups, 1)?;
    let shut = open.f_eq(0)?.f_unsqueeze(-1)?;
    Ok(grouped
        .f_masked_fill(&shut, f64::NEG_INFINITY)?
        .f_flatten(-2, -1)?)
}
