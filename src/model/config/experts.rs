//! The numbers of a mixture of experts.

use crate::model::Error;
use crate::model::arch::{Bias, Experts, SharedWidth, SparseLayers};
use crate::model::keys::Keys;
use serde_json::Value;

/// A mixture of experts' numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertsConfig {
    pub count: usize,
    /// How many of them a token goes through.
    pub top_k: usize,
    /// Rows of an expert's gate.
    pub width: usize,
    /// Rows of the shared expert's gate; 0 where there is none.
    pub shared_width: usize,
    pub bias: bool,
    pub router_bias: bool,
    pub renormalize: bool,
    /// What the weights are multiplied by.
    pub scaling: Option<f64>,
    /// Groups of experts, and from how many of them a token's are chosen.
    pub groups: Option<(usize, usize)>,
    /// Which layers have them.
    pub layers: Vec<bool>,
}

impl ExpertsConfig {
    pub(super) fn new(keys: &Keys<'_>, row: &Experts, n_layers: usize) -> Result<Self, Error> {
        let count = keys.size("num_experts")?;
        let top_k = keys.size("num_experts_per_tok")?;
        if top_k > count {
            let expected = format!("at most num_experts, {count}");
            return Err(keys.invalid("num_experts_per_tok", expected));
        }
        let width = keys.size("moe_intermediate_size")?;
        let flag = |bias: Bias| match bias {
            Bias::Never => Ok(false),
            Bias::Always => Ok(true),
            Bias::If(key) => Ok::<_, Error>(keys.bool(key)?.unwrap_or(false)),
        };
        let groups = match row.router.groups {
            None => None,
            Some(_) => {
                let n_groups = keys.usize("n_group")?.unwrap_or(1);
                let kept = keys.usize("topk_group")?.unwrap_or(n_groups);
                if n_groups == 0 || !count.is_multiple_of(n_groups) {
                    let expected = format!("a divisor of num_experts, {count}");
                    return Err(keys.invalid("n_group", expected));
                }
                if kept == 0 || kept > n_groups || kept * (count / n_groups) < top_k {
                    let expected = format!("enough of the {n_groups} groups for {top_k} experts");
                    return Err(keys.invalid("topk_group", expected));
                }
                (kept < n_groups).then_some((n_groups, kept))
            }
        };
        Ok(Self {
            count,
            top_k,
            width,
            shared_width: match row.shared.map(|shared| shared.width) {
                None => 0,
                Some(SharedWidth::By(key)) => keys.usize(key)?.unwrap_or(0),
                Some(SharedWidth::Experts(key)) => keys.usize(key)?.unwrap_or(0) * width,
            },
            bias: flag(row.bias)?,
            router_bias: flag(row.router.bias)?,
            renormalize: flag(row.router.renormalize)?,
            scaling: match row.router.scaling {
                None => None,
                Some(key) => keys.positive(key)?,
            },
            groups,
            layers: layers(keys, row.layers, n_layers)?,
        })
    }
}

fn layers(keys: &Keys<'_>, rule: SparseLayers, n_layers: usize) -> Result<Vec<bool>, Error> {
    Ok(match rule {
        SparseLayers::All => vec![true; n_layers],
        SparseLayers::From(key) => {
            let first = keys.usize(key)?.unwrap_or(0);
            (0..n_layers).map(|layer| layer >= first).collect()
        }
        SparseLayers::SparseStep => {
            let step = keys.usize("decoder_sparse_step")?.unwrap_or(1);
            let dense = match keys.get("mlp_only_layers") {
                None => Vec::new(),
                Some(list) => {
                    let layers = list.as_array().map(|list| list.iter().map(Value::as_u64));
                    let layers: Option<Vec<u64>> = layers.and_then(Iterator::collect);
                    layers.ok_or_else(|| keys.invalid("mlp_only_layers", "a list of layers"))?
                }
            };
            (0..n_layers)
                .map(|layer| {
                    step > 0 && (layer + 1) % step == 0 && !dense.contains(&(layer as u64))
                })
                .collect()
        }
    })
}
