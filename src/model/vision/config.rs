//! A tower's sizes, from `vision_config`.

use super::rows::{Eps, MlpWidth, Resampling, Tower, TowerBias, TowerMlp, TowerQueryKeyNorms};
use crate::model::config::activation;
use crate::model::keys::Keys;
use crate::model::{Activation, Error, NormKind};
use serde_json::Value;

/// A tower's numbers.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct TowerConfig {
    pub row: &'static Tower,
    /// `vision_config` with the row's defaults.
    pub json: Value,
    pub width: usize,
    pub mlp_width: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Patches of the side of a square that becomes one feature, where patches are stored square by square.
    pub squares: Option<usize>,
    /// Frames of a patch, for towers that see films; an image is stored as so many equal ones.
    pub frames: usize,
    /// Pixels of an image's side, where all have one size.
    pub image_size: Option<usize>,
    pub activation: Activation,
    pub eps: f64,
    pub rope_theta: f64,
    pub bias: bool,
    pub output_bias: bool,
    /// Whether queries and keys have norms, of the kind that the row says.
    pub query_key_norms: bool,
    /// Whether what the layers' linears read and make is bounded.
    pub bounded: bool,
    /// The norms of layers; those around them are as the row says.
    pub norm_kind: NormKind,
    pub has_last_norm: bool,
    /// Patches of a window's side, in squares, and the layers that attend to everything all the same.
    pub windows: Option<(usize, Vec<usize>)>,
    /// Rows of the table of positions, the class token's among them; of one of the two where there are two.
    pub n_positions: usize,
    /// The layers whose outputs are used in the language model's first layers.
    pub deepstack: Vec<usize>,
}

impl TowerConfig {
    /// From `vision_config`, with the row's defaults filled in.
    pub fn new(row: &'static Tower, json: &Value) -> Result<Self, Error> {
        let keys = Keys {
            json,
            path: "vision_config",
        };
        let either = |first: &'static str, second: &'static str| {
            let key = if keys.get(first).is_some() {
                first
            } else {
                second
            };
            keys.size(key)
        };
        let width = keys.size(row.width)?;
        let n_heads = match keys.length("attention_heads")? {
            Some(n_heads) => n_heads,
            None => either("num_heads", "num_attention_heads")?,
        };
        // Other towers' files may have these keys, which transformers does not read there.
        let own_heads = matches!(row.attention.norms, TowerQueryKeyNorms::Heads(_));
        let head_dim = keys.length("head_dim")?.filter(|_| own_heads);
        if head_dim.is_none() && !width.is_multiple_of(n_heads) {
            let heads = format!("a multiple of the {n_heads} heads");
            return Err(keys.invalid(row.width, heads));
        }
        let head_dim = head_dim.unwrap_or(width / n_heads);
        if row.rotary.is_some() && !head_dim.is_multiple_of(4) {
            let turning =
                format!("a multiple of 4 for each of the {n_heads} heads, whose positions turn");
            return Err(keys.invalid(if own_heads { "head_dim" } else { row.width }, turning));
        }
        let n_kv_heads = keys.length("num_key_value_heads")?.filter(|_| own_heads);
        let n_kv_heads = n_kv_heads.unwrap_or(n_heads);
        if !n_heads.is_multiple_of(n_kv_heads) {
            let divisor = format!("a divisor of the {n_heads} heads");
            return Err(keys.invalid("num_key_value_heads", divisor));
        }
        let patch_size = keys.size("patch_size")?;
        let image_size = keys.length("image_size")?;
        let flag = |bias| match bias {
            TowerBias::Always => Ok(true),
            TowerBias::Never => Ok(false),
            TowerBias::If(key) => Ok::<_, Error>(keys.bool(key)?.unwrap_or(false)),
        };
        let by_axis = (row.positions).is_some_and(|table| table.resampling == Resampling::ByAxis);
        let n_positions = if by_axis {
            keys.size("position_embedding_size")?
        } else {
            match keys.length("num_position_embeddings")? {
                Some(count) => count,
                None => image_size.map_or(0, |size| (size / patch_size).pow(2)),
            }
        };
        let windows = if row.windows {
            let side = keys.size("window_size")? / keys.size("spatial_merge_size")? / patch_size;
            if side == 0 {
                return Err(keys.invalid("window_size", "at least a square of patches"));
            }
            Some((side, indices(&keys, "fullatt_block_indexes")?))
        } else {
            None
        };
        let act = ["hidden_act", "hidden_activation"];
        let act = act.into_iter().find(|key| keys.get(key).is_some());
        let act = act.unwrap_or("hidden_act");
        let rotary = keys.get("rope_parameters").unwrap_or(&Value::Null);
        let rope_theta = Keys {
            json: rotary,
            path: "vision_config.rope_parameters",
        }
        .positive("rope_theta")?
        .or(keys.positive("rope_theta")?);
        Ok(Self {
            row,
            json: json.clone(),
            width,
            mlp_width: match row.mlp_width {
                MlpWidth::Key(key) => keys.size(key)?,
                MlpWidth::Ratio(key) => width * keys.size(key)?,
            },
            n_layers: either("depth", "num_hidden_layers")?,
            n_heads,
            n_kv_heads,
            head_dim,
            patch_size,
            squares: keys.length("spatial_merge_size")?,
            frames: keys.length("temporal_patch_size")?.unwrap_or(1),
            image_size,
            activation: activation(&keys, act)?,
            eps: match row.norm.eps {
                Eps::Is(eps) => eps,
                Eps::Key(key) => keys.positive(key)?.ok_or_else(|| keys.missing(key))?,
                Eps::Text => unreachable!("a tower knows no text"),
            },
            rope_theta: rope_theta.unwrap_or(10_000.0),
            bias: flag(row.attention.bias)?,
            output_bias: flag(row.attention.output_bias)?,
            query_key_norms: match row.attention.norms {
                TowerQueryKeyNorms::None => false,
                TowerQueryKeyNorms::Whole(_, key) => keys.bool(key)?.unwrap_or(false),
                TowerQueryKeyNorms::Heads(_) => true,
            },
            bounded: match row.bounded_if {
                None => false,
                Some(key) => keys.bool(key)?.unwrap_or(false),
            },
            norm_kind: match keys.str("norm_type")? {
                Some("rms_norm") => NormKind::Rms,
                Some("layer_norm") | None => row.norm.kind,
                Some(_) => return Err(keys.unsupported("norm_type", "layer_norm, rms_norm")),
            },
            has_last_norm: row.last_norm.is_some() && keys.bool("use_mean_pooling")? != Some(true),
            windows,
            n_positions: n_positions + usize::from(row.class_token.is_some()),
            deepstack: indices(&keys, "deepstack_visual_indexes")?,
        })
    }

    /// The list of layers under `key`.
    pub fn indices(&self, key: &str) -> Result<Vec<usize>, Error> {
        indices(&self.keys(), key)
    }

    pub fn keys(&self) -> Keys<'_> {
        Keys {
            json: &self.json,
            path: "vision_config",
        }
    }

    /// The linears of a layer in the order in which they run, with their shapes `[out, in]`, and whether they have a bias.
    pub fn layer_linears(&self) -> Vec<(&'static str, [usize; 2], bool)> {
        let (attention, width) = (&self.row.attention, self.width);
        let [heads, kv_heads] = [self.n_heads, self.n_kv_heads].map(|n| n * self.head_dim);
        let rows = match attention.inputs.len() {
            1 => vec![heads + 2 * kv_heads],
            _ => vec![heads, kv_heads, kv_heads],
        };
        let (wide, last, bias) = match self.row.mlp {
            TowerMlp::Plain([up, down], bias) => (vec![up], down, bias),
            TowerMlp::Gated([gate, up, down], bias) => (vec![gate, up], down, bias),
        };
        let mlp_bias = matches!(bias, TowerBias::Always);
        let inputs = attention.inputs.iter().zip(rows);
        let inputs = inputs.map(|(&name, rows)| (name, [rows, width], self.bias));
        let wide = wide.into_iter();
        let wide = wide.map(|name| (name, [self.mlp_width, width], mlp_bias));
        inputs
            .chain([(attention.output, [width, heads], self.output_bias)])
            .chain(wide)
            .chain([(last, [width, self.mlp_width], mlp_bias)])
            .collect()
    }
}

fn indices(keys: &Keys<'_>, key: &str) -> Result<Vec<usize>, Error> {
    let Some(value) = keys.get(key) else {
        return Ok(Vec::new());
    };
    let indices = value.as_array().map(|list| {
        let index = |value: &Value| Some(value.as_u64()? as usize);
        list.iter().map(index).collect::<Option<Vec<_>>>()
    });
    indices
        .flatten()
        .ok_or_else(|| keys.invalid(key, "a list of layers' numbers"))
}
