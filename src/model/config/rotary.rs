//! The rotary settings of a `config.json`, in both spellings.

use crate::model::Error;
use crate::model::arch::{Architecture, Pairs};
use crate::model::keys::Keys;
use serde_json::Value;

/// How the rotary frequencies are stretched for contexts longer than those of pretraining.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    Default,
    Linear {
        factor: f64,
    },
    /// Only the first pairs turn; their frequencies are those of a head that turns whole.
    Proportional {
        pairs: usize,
        factor: f64,
    },
    Dynamic {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
    Yarn {
        factor: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max_position_embeddings: f64,
        /// Whether the bounds of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
    /// Each frequency is divided by a number of its own, of one list for contexts up to the original length, of another
    /// beyond it.
    LongRope {
        short_factor: Vec<f64>,
        long_factor: Vec<f64>,
        short_attention_factor: f64,
        long_attention_factor: f64,
        original_max_position_embeddings: f64,
    },
}

/// A rotary embedding's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// How many of a head's dimensions turn: the first ones.
    pub dim: usize,
    /// Whether neighbours turn together, not halves.
    pub neighbours: bool,
    /// The axis of each pair, for tokens of images, which have places in time, in rows and in columns; empty where all tokens are
    /// counted alike.
    pub axes: Vec<usize>,
    pub scaling: RopeScaling,
}

/// The object with the rotary settings, whichever name it has.
pub(super) struct RotarySettings<'a> {
    path: &'static str,
    json: &'a Value,
}

impl<'a> RotarySettings<'a> {
    pub fn new(keys: &Keys<'a>) -> Self {
        static NOTHING: Value = Value::Null;
        // transformers lets rope_scaling win where a config has both.
        let found = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .find_map(|path| Some((path, keys.get(path)?)));
        let (path, json) = found.unwrap_or(("rope_parameters", &NOTHING));
        Self { path, json }
    }

    pub fn keys(&self) -> Keys<'a> {
        Keys {
            json: self.json,
            path: self.path,
        }
    }

    /// `0.1 m ln(factor) + 1` of a stretched embedding, with `mscale_all_dim` as `m`.
    pub fn mscale(&self) -> Result<f64, Error> {
        let rope = self.keys();
        let stretch = rope.str(type_key(&rope))?.unwrap_or("default");
        let weight = rope.f64("mscale_all_dim")?.unwrap_or(0.0);
        if stretch == "default" || weight == 0.0 {
            return Ok(1.0);
        }
        let factor = rope.positive("factor")?;
        Ok(mscale(
            factor.ok_or_else(|| rope.missing("factor"))?,
            weight,
        ))
    }
}

/// The key of the kind of stretch.
fn type_key(rope: &Keys<'_>) -> &'static str {
    if rope.get("rope_type").is_some() {
        "rope_type"
    } else {
        "type"
    }
}

/// YaRN's factor for scores or, as its root, for queries and keys.
fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * weight * factor.ln() + 1.0
    }
}

/// The rotary embedding of all layers, or that of layers without a window and that of layers with one. `head_dims` are how
/// many dimensions a head has in the former and in the latter.
pub(super) fn ropes(
    keys: &Keys<'_>,
    settings: &RotarySettings<'_>,
    arch: &Architecture,
    [full_dim, windowed_dim]: [usize; 2],
    max_position_embeddings: f64,
) -> Result<Vec<RopeConfig>, Error> {
    let RotarySettings { path, json } = *settings;
    let read = |json, path, theta_key, head_dim| {
        let rope = Keys { json, path };
        rope_of(
            keys,
            &rope,
            theta_key,
            arch,
            head_dim,
            max_position_embeddings,
        )
    };
    let Some(windowed_key) = arch.rotary.windowed else {
        return Ok(vec![read(json, path, "rope_theta", full_dim)?]);
    };
    let nested = |name: &str| json.get(name).filter(|value| value.is_object());
    Ok(
        match (nested("full_attention"), nested("sliding_attention")) {
            (Some(full), Some(windowed)) => vec![
                read(
                    full,
                    "rope_parameters.full_attention",
                    "rope_theta",
                    full_dim,
                )?,
                read(
                    windowed,
                    "rope_parameters.sliding_attention",
                    windowed_key,
                    windowed_dim,
                )?,
            ],
            _ => vec![
                read(json, path, "rope_theta", full_dim)?,
                read(&Value::Null, path, windowed_key, windowed_dim)?,
            ],
        },
    )
}

/// The rotary embedding that `rope` describes; what is not there is looked up in the file itself.
fn rope_of(
    keys: &Keys<'_>,
    rope: &Keys<'_>,
    theta_key: &str,
    arch: &Architecture,
    head_dim: usize,
    max_position_embeddings: f64,
) -> Result<RopeConfig, Error> {
    if !rope.json.is_null() && !rope.json.is_object() {
        return Err(keys.invalid(rope.path, "an object"));
    }
    let mut entries = rope.json.as_object().into_iter().flatten();
    if let Some((key, _)) = entries.find(|(_, value)| value.is_object()) {
        return Err(rope.unsupported(key, "one rotary embedding for all layers"));
    }
    let rotary = arch.rotary;
    let part_key = "partial_rotary_factor";
    let part = match rope.positive(part_key)? {
        _ if arch.attention.latent.is_some() => Some(1.0),
        Some(part) => Some(part),
        None => keys.positive(part_key)?,
    };
    let given = match rotary.dim {
        Some(key) if part.is_none() => keys.usize(key)?.map(|dim| (key, dim)),
        _ => None,
    };
    let whole = (part_key, (head_dim as f64 * part.unwrap_or(1.0)) as usize);
    let (key, mut dim) = given.unwrap_or(whole);
    let type_key = type_key(rope);
    let kind = rope.str(type_key)?.unwrap_or("default");
    let pairs = dim / 2;
    if kind == "proportional" && dim <= head_dim {
        dim = head_dim;
    }
    if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
        let expected = format!("a part that leaves an even number of head_dim, {head_dim}");
        return Err(keys.invalid(key, expected));
    }
    let neighbours = match rotary.pairs {
        Pairs::Halves => false,
        Pairs::Neighbours => true,
        Pairs::NeighboursUnless(key) => keys.bool(key)?.unwrap_or(true),
    };
    let mut theta = match rope.positive("rope_theta")? {
        Some(theta) => theta,
        None => keys.positive(theta_key)?.unwrap_or(10_000.0),
    };
    let alpha = rope.positive("alpha")?.filter(|_| rotary.alpha);
    let factor = || {
        rope.positive("factor")?
            .ok_or_else(|| rope.missing("factor"))
    };
    let original_max_position_embeddings =
        match keys.positive("original_max_position_embeddings")? {
            Some(original) => original,
            None => rope
                .positive("original_max_position_embeddings")?
                .unwrap_or(max_position_embeddings),
        };
    let scaling = match kind {
        // Qwen2-VL's early configs call it by its axes.
        "default" | "mrope" => RopeScaling::Default,
        "proportional" => RopeScaling::Proportional {
            pairs,
            factor: rope.positive("factor")?.unwrap_or(1.0),
        },
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => match alpha {
            None => RopeScaling::Dynamic { factor: factor()? },
            Some(alpha) => {
                theta *= alpha.powf(dim as f64 / (dim as f64 - 2.0));
                RopeScaling::Default
            }
        },
        "llama3" => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: rope
                .positive("low_freq_factor")?
                .ok_or_else(|| rope.missing("low_freq_factor"))?,
            high_freq_factor: rope
                .positive("high_freq_factor")?
                .ok_or_else(|| rope.missing("high_freq_factor"))?,
            original_max_position_embeddings,
        },
        "yarn" => {
            let factor = rope
                .positive("factor")?
                .unwrap_or(max_position_embeddings / original_max_position_embeddings);
            RopeScaling::Yarn {
                factor,
                attention_factor: yarn_attention_factor(rope, factor)?,
                beta_fast: rope.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.positive("beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings,
                truncate: rope.bool("truncate")?.unwrap_or(true),
            }
        }
        "longrope" | "su" => {
            let factors = |key| {
                let factors = rope.positives(key)?.filter(|list| list.len() == dim / 2);
                let expected = format!(
                    "a list of {} numbers, one for each pair that turns",
                    dim / 2
                );
                factors.ok_or_else(|| rope.invalid(key, expected))
            };
            let stretch = match rope.positive("factor")? {
                Some(factor) => factor,
                None => max_position_embeddings / original_max_position_embeddings,
            };
            let computed = if stretch <= 1.0 {
                1.0
            } else {
                (1.0 + stretch.ln() / original_max_position_embeddings.ln()).sqrt()
            };
            let usual = rope.positive("attention_factor")?.unwrap_or(computed);
            RopeScaling::LongRope {
                short_factor: factors("short_factor")?,
                long_factor: factors("long_factor")?,
                short_attention_factor: rope.positive("short_mscale")?.unwrap_or(usual),
                long_attention_factor: rope.positive("long_mscale")?.unwrap_or(usual),
                original_max_position_embeddings,
            }
        }
        _ => {
            let supported = "default, linear, dynamic, llama3, yarn, longrope, proportional";
            return Err(rope.unsupported(type_key, supported));
        }
    };
    Ok(RopeConfig {
        axes: axes(rope, dim / 2)?,
        theta,
        dim,
        neighbours,
        scaling,
    })
}

/// The published `0.1 ln(factor) + 1`, unless the config gives the number or the two weights of its quotient.
fn yarn_attention_factor(rope: &Keys<'_>, factor: f64) -> Result<f64, Error> {
    let mscale = |weight| mscale(factor, weight);
    if let Some(given) = rope.positive("attention_factor")? {
        return Ok(given);
    }
    Ok(match (rope.f64("mscale")?, rope.f64("mscale_all_dim")?) {
        (Some(weight), Some(all)) if weight != 0.0 && all != 0.0 => mscale(weight) / mscale(all),
        _ => mscale(1.0),
    })
}

/// The axis of each of so many pairs: as many pairs after each other as each number of `mrope_section` says, or pairs in turns,
/// where the last ones are left to time.
fn axes(rope: &Keys<'_>, pairs: usize) -> Result<Vec<usize>, Error> {
    let key = "mrope_section";
    let Some(sections) = rope.get(key) else {
        return Ok(Vec::new());
    };
    let sections = sections.as_array().map(|list| {
        let number = |value: &Value| Some(value.as_u64()? as usize);
        list.iter().map(number).collect::<Option<Vec<_>>>()
    });
    let sections = sections.flatten().filter(|sections| {
        sections.len() >= 3
            && sections
                .iter()
                .try_fold(0usize, |sum, &n| sum.checked_add(n))
                == Some(pairs)
    });
    let sections = sections.ok_or_else(|| {
        rope.invalid(
            key,
            format!("three or more numbers that sum up to the {pairs} pairs that turn"),
        )
    })?;
    if rope.bool("mrope_interleaved")? == Some(true) {
        let axis = |pair: usize| {
            let axis = pair % 3;
            if pair < 3 * sections[axis] { axis } else { 0 }
        };
        return Ok((0..pairs).map(axis).collect());
    }
    let runs = sections.iter().enumerate();
    Ok(runs
        .flat_map(|(section, &n)| std::iter::repeat_n(section % 3, n))
        .collect())
}
