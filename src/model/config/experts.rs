//! The numbers of a mixture of experts.

use crate::model::Error;
use crate::model::arch::{Bias, Experts, GroupScore, Scoring, SharedWidth, SparseLayers};
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
    /// How near an expert's score must come to the best one's to count beside it.
    pub nearness: f64,
    /// Groups of experts, and from how many of them a token's are chosen.
    pub groups: Option<(usize, usize)>,
    /// Which layers have them.
    pub layers: Vec<bool>,
}

impl ExpertsConfig {
    /// Nothing where no layer has experts, or where there are none.
    pub(super) fn new(
        keys: &Keys<'_>,
        row: &Experts,
        n_layers: usize,
    ) -> Result<Option<Self>, Error> {
        let layers = layers(keys, row.layers, n_layers)?;
        if !layers.contains(&true) || keys.usize("num_experts")? == Some(0) {
            return Ok(None);
        }
        let count = keys.size("num_experts")?;
        let top_k = keys.size("num_experts_per_tok")?;
        if top_k > count {
            let expected = format!("at most num_experts, {count}");
            return Err(keys.invalid("num_experts_per_tok", expected));
        }
        if row.router.scoring == Scoring::SparseMixer && top_k != 2 {
            return Err(keys.unsupported("num_experts_per_tok", "2"));
        }
        let width = keys.size("moe_intermediate_size")?;
        let flag = |bias: Bias| match bias {
            Bias::Never => Ok(false),
            Bias::Always => Ok(true),
            Bias::If(key) => Ok::<_, Error>(keys.bool(key)?.unwrap_or(false)),
        };
        let groups = match row.router.groups {
            Some(GroupScore::BestIfLimited)
                if keys.str("topk_method")? != Some("group_limited_greedy") =>
            {
                None
            }
            Some(_) => groups(keys, count, top_k)?,
            None => None,
        };
        Ok(Some(Self {
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
            nearness: keys.f64("router_jitter_noise")?.unwrap_or(0.0) * 2.0,
            groups,
            layers,
        }))
    }
}

/// Groups of experts, and from how many of them a token's are chosen; nothing where that is from all.
fn groups(keys: &Keys<'_>, count: usize, top_k: usize) -> Result<Option<(usize, usize)>, Error> {
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
    Ok((kept < n_groups).then_some((n_groups, kept)))
}

fn layers(keys: &Keys<'_>, rule: SparseLayers, n_layers: usize) -> Result<Vec<bool>, Error> {
    if let Some(types) = keys.get("mlp_layer_types") {
        let types = types.as_array().filter(|types| types.len() == n_layers);
        let types = types.and_then(|types| {
            let types = types.iter().map(|name| match name.as_str() {
                Some("dense") => Some(false),
                Some("sparse") => Some(true),
                _ => None,
            });
            types.collect()
        });
        return types.ok_or_else(|| {
            let expected =
                format!("a list of num_hidden_layers, {n_layers}, \"dense\" or \"sparse\"");
            keys.invalid("mlp_layer_types", expected)
        });
    }
    let listed = |key| match keys.get(key) {
        None => Ok(None),
        Some(list) => {
            let layers = list.as_array().map(|list| list.iter().map(Value::as_u64));
            let layers: Option<Vec<u64>> = layers.and_then(Iterator::collect);
            let invalid = || keys.invalid(key, "a list of layers");
            Ok::<_, Error>(Some(layers.ok_or_else(invalid)?))
        }
    };
    let every =
        |interval: usize| move |layer: usize| interval > 0 && (layer + 1).is_multiple_of(interval);
    Ok(match rule {
        SparseLayers::Between {
            first,
            last,
            interval,
        } => {
            let first = keys.usize(first)?.unwrap_or(0);
            // -1 is the last layer's.
            let last = match keys.f64(last)? {
                Some(last) if last >= 0.0 => last as usize,
                _ => n_layers - 1,
            };
            let every = every(keys.usize(interval)?.unwrap_or(1));
            (0..n_layers)
                .map(|layer| (first..=last).contains(&layer) && every(layer))
                .collect()
        }
        SparseLayers::Listed { list, interval } => {
            if let Some(list) = listed(list)? {
                let layers = 0..n_layers as u64;
                return Ok(layers.map(|layer| list.contains(&layer)).collect());
            }
            let every = every(keys.usize(interval)?.unwrap_or(1));
            (0..n_layers).map(every).collect()
        }
        SparseLayers::All => vec![true; n_layers],
        SparseLayers::AllIf(key) => vec![keys.bool(key)? == Some(true); n_layers],
        SparseLayers::From(key) => {
            let first = keys.usize(key)?.unwrap_or(0);
            (0..n_layers).map(|layer| layer >= first).collect()
        }
        SparseLayers::SparseStep => {
            let every = every(keys.usize("decoder_sparse_step")?.unwrap_or(1));
            let dense = listed("mlp_only_layers")?.unwrap_or_default();
            (0..n_layers)
                .map(|layer| every(layer) && !dense.contains(&(layer as u64)))
                .collect()
        }
    })
}
