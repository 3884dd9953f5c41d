//! The numbers of a mixer other than attention.

use crate::model::Error;
use crate::model::arch::{Bias, Mixer, MixerKind, MixerLayers, Multipliers};
use crate::model::keys::Keys;
use serde_json::Value;

/// A mixer's numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each kind of tensor")]
pub struct MixerConfig {
    pub kind: MixerKind,
    /// Tokens that the convolution reads.
    pub kernel: usize,
    pub bias: bool,
    pub convolution_bias: bool,
    pub output_bias: bool,
    pub has_norm: bool,
    /// Heads of the recurrent state, and the width of what each makes.
    pub n_heads: usize,
    pub head_dim: usize,
    /// Groups of heads that share what is written to the state with and read from it, and the width of that.
    pub n_groups: usize,
    pub state_dim: usize,
    /// The least and the greatest step.
    pub step_limit: (f64, f64),
}

impl MixerConfig {
    /// Width of what it makes.
    pub fn width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of what is written to the state with, or read from it with, all groups together.
    pub fn state_width(&self) -> usize {
        self.n_groups * self.state_dim
    }

    /// Channels of the convolution.
    pub fn channels(&self) -> usize {
        match self.kind {
            MixerKind::ShortConv => self.width(),
            MixerKind::GatedDelta | MixerKind::Mamba2 => self.width() + 2 * self.state_width(),
        }
    }

    /// Operations for a token, its linears' not counted: the convolution, and each number of the state once to write it and
    /// once to read it.
    pub fn operations(&self) -> f64 {
        let state = match self.kind {
            MixerKind::ShortConv => 0,
            MixerKind::GatedDelta | MixerKind::Mamba2 => self.width() * self.state_dim,
        };
        (2 * self.channels() * self.kernel + 4 * state) as f64
    }

    pub(super) fn new(keys: &Keys<'_>, row: &Mixer, hidden_size: usize) -> Result<Self, Error> {
        let flag = |bias: Bias| match bias {
            Bias::Never => Ok(false),
            Bias::Always => Ok(true),
            Bias::If(key) => Ok::<_, Error>(keys.bool(key)?.unwrap_or(false)),
        };
        let (n_heads, head_dim, n_groups, state_dim) = match row.kind {
            MixerKind::ShortConv => (1, hidden_size, 1, hidden_size),
            MixerKind::GatedDelta => (
                keys.size("linear_num_value_heads")?,
                keys.size("linear_value_head_dim")?,
                keys.size("linear_num_key_heads")?,
                keys.size("linear_key_head_dim")?,
            ),
            MixerKind::Mamba2 => {
                let n_heads = keys.size("mamba_n_heads")?;
                let head_dim = match keys.get("mamba_d_head") {
                    Some(value) if value != "auto" => keys.size("mamba_d_head")?,
                    _ => match keys.length("mamba_d_ssm")? {
                        Some(width) => width / n_heads,
                        None => keys.size("mamba_expand")? * hidden_size / n_heads,
                    },
                };
                let n_groups = keys.size("mamba_n_groups")?;
                (n_heads, head_dim, n_groups, keys.size("mamba_d_state")?)
            }
        };
        if !n_heads.is_multiple_of(n_groups) {
            let key = match row.kind {
                MixerKind::GatedDelta => "linear_num_key_heads",
                MixerKind::ShortConv | MixerKind::Mamba2 => "mamba_n_groups",
            };
            return Err(keys.invalid(key, format!("a divisor of the {n_heads} heads")));
        }
        let has_norm = match (row.kind, row.norm_if) {
            (MixerKind::ShortConv, _) => false,
            (_, None) => true,
            (_, Some(key)) => keys.bool(key)?.unwrap_or(false),
        };
        if has_norm && row.kind == MixerKind::Mamba2 {
            keys.require("mamba_norm_before_gate", &["false"])?;
        }
        Ok(Self {
            kind: row.kind,
            kernel: keys.size(row.kernel)?,
            bias: flag(row.bias)?,
            convolution_bias: flag(row.convolution_bias)?,
            output_bias: flag(row.output_bias)?,
            has_norm,
            n_heads,
            head_dim,
            n_groups,
            state_dim,
            step_limit: match row.least_step {
                Some(key) => (keys.f64(key)?.unwrap_or(0.0), f64::INFINITY),
                None => step_limit(keys)?,
            },
        })
    }
}

/// `time_step_limit`, which JSON may spell `[0.0, Infinity]`, `[0.0, {"__float__": "Infinity"}]` or without an end.
fn step_limit(keys: &Keys<'_>) -> Result<(f64, f64), Error> {
    let Some(limit) = keys.get("time_step_limit") else {
        return Ok((0.0, f64::INFINITY));
    };
    let ends = limit.as_array().filter(|ends| ends.len() == 2);
    let ends = ends.and_then(|ends| {
        let upper = match &ends[1] {
            Value::Number(number) => number.as_f64()?,
            _ => f64::INFINITY,
        };
        Some((ends[0].as_f64()?, upper))
    });
    ends.ok_or_else(|| keys.invalid("time_step_limit", "two numbers"))
}

/// What a layer consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each part")]
pub(super) struct Parts {
    pub attention: bool,
    pub mixer: bool,
    pub mlp: bool,
    pub experts: bool,
}

impl Parts {
    /// Attention, and an MLP or experts.
    const USUAL: Self = Self {
        attention: true,
        mixer: false,
        mlp: true,
        experts: true,
    };

    /// Of each of `n_layers` layers.
    pub fn of_layers(
        keys: &Keys<'_>,
        row: Option<&Mixer>,
        has_experts: bool,
        n_layers: usize,
    ) -> Result<Vec<Self>, Error> {
        let Some(row) = row else {
            return Ok(vec![Self::USUAL; n_layers]);
        };
        let mixer = Self {
            attention: false,
            mixer: true,
            ..Self::USUAL
        };
        let (name, attention): (_, Vec<bool>) = match row.layers {
            MixerLayers::Beside => {
                let both = Self {
                    mixer: true,
                    ..Self::USUAL
                };
                return Ok(vec![both; n_layers]);
            }
            MixerLayers::Alone => return alone(keys, has_experts, n_layers),
            MixerLayers::AllButEvery(name, key) => {
                let interval = keys.usize(key)?.unwrap_or(usize::MAX).max(1);
                let attention = (1..=n_layers).map(|layer| layer % interval == 0);
                (name, attention.collect())
            }
            MixerLayers::AllButListed(name, key) => {
                let listed: Option<Vec<u64>> = match keys.get(key) {
                    None => Some((0..n_layers as u64).collect()),
                    Some(list) => list
                        .as_array()
                        .and_then(|list| list.iter().map(Value::as_u64).collect()),
                };
                let listed = listed.ok_or_else(|| keys.invalid(key, "a list of layers"))?;
                let attention = (0..n_layers as u64).map(|layer| listed.contains(&layer));
                (name, attention.collect())
            }
        };
        let part = |attention: bool| if attention { Self::USUAL } else { mixer };
        if keys.get("layer_types").is_none() {
            return Ok(attention.into_iter().map(part).collect());
        }
        let supported = format!("full_attention, {name}");
        named_layers(keys, "layer_types", n_layers, &supported, |found| {
            match found {
                // What earlier versions of transformers wrote.
                "full_attention" | "attention" => Some(Self::USUAL),
                "mamba" if name == "linear_attention" => Some(mixer),
                found => (found == name).then_some(mixer),
            }
        })
    }
}

/// Layers of one part each: `layers_block_type`, or a letter for each in `hybrid_override_pattern`.
fn alone(keys: &Keys<'_>, has_experts: bool, n_layers: usize) -> Result<Vec<Parts>, Error> {
    const NONE: Parts = Parts {
        attention: false,
        mixer: false,
        mlp: false,
        experts: false,
    };
    let part = |name: &str| match name {
        "full_attention" | "attention" | "*" => Some(Parts {
            attention: true,
            ..NONE
        }),
        "linear_attention" | "mamba" | "M" => Some(Parts {
            mixer: true,
            ..NONE
        }),
        "mlp" | "-" => Some(Parts { mlp: true, ..NONE }),
        "moe" | "E" if has_experts => Some(Parts {
            experts: true,
            ..NONE
        }),
        _ => None,
    };
    if keys.get("layers_block_type").is_some() {
        let supported = if has_experts {
            "full_attention, linear_attention, mlp, moe"
        } else {
            "full_attention, linear_attention, mlp"
        };
        return named_layers(keys, "layers_block_type", n_layers, supported, part);
    }
    let key = "hybrid_override_pattern";
    let pattern = keys.str(key)?.unwrap_or_default();
    let letters: Option<Vec<Parts>> = (pattern.split("").filter(|letter| !letter.is_empty()))
        .map(part)
        .collect();
    let letters = letters.filter(|letters| letters.len() == n_layers);
    letters.ok_or_else(|| {
        let letters = if has_experts {
            "M, *, - and E"
        } else {
            "M, * and -"
        };
        let expected =
            format!("one of the letters {letters} for each of num_hidden_layers, {n_layers}");
        keys.invalid(key, expected)
    })
}

/// The list `key` of a name for each layer.
fn named_layers<T>(
    keys: &Keys<'_>,
    key: &str,
    n_layers: usize,
    supported: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let names = keys.get(key).and_then(Value::as_array);
    let names = names.filter(|names| names.len() == n_layers);
    let names = names.ok_or_else(|| {
        let expected = format!("a list of num_hidden_layers, {n_layers}, names");
        keys.invalid(key, expected)
    })?;
    names
        .iter()
        .map(|name| {
            let read = name.as_str().and_then(&read);
            read.ok_or_else(|| keys.unsupported(key, supported))
        })
        .collect()
}

/// What linears' outputs are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MultipliersConfig {
    /// Of the products of queries and keys.
    pub scores: Option<f64>,
    pub attention_output: Option<f64>,
    pub mixer_output: Option<f64>,
    pub gate: Option<f64>,
    pub mlp_output: Option<f64>,
    /// Of the mixer's gate, `X`, `B`, `C` and step.
    pub mixer_parts: Option<[f64; 5]>,
}

impl MultipliersConfig {
    pub(super) fn new(keys: &Keys<'_>, row: &Multipliers) -> Result<Self, Error> {
        let number = |key| Ok::<_, Error>(keys.positive(key)?.unwrap_or(1.0));
        let list = |key: &str, len: usize| match keys.positives(key)? {
            None => Ok(vec![1.0; len]),
            Some(list) if list.len() == len => Ok(list),
            Some(_) => Err(keys.invalid(key, format!("a list of {len} numbers above 0"))),
        };
        // What attention reads reaches its output once through the values, and the scores twice.
        let attention_input = number(row.attention_input)?;
        let mixer_input = number(row.mixer_input)?;
        let parts = list(row.mixer_parts, 5)?;
        let mlp = list(row.mlp, 2)?;
        Ok(Self {
            scores: Some(attention_input.powi(2) * number(row.key)?),
            attention_output: Some(attention_input * number(row.attention_output)?),
            mixer_output: Some(number(row.mixer_output)?),
            gate: Some(mlp[0]),
            mlp_output: Some(mlp[1]),
            mixer_parts: Some(std::array::from_fn(|part| mixer_input * parts[part])),
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use crate::model::{Error, Model};
    use serde_json::{Value, json};

    fn read(model_type: &str, changes: &Value) -> Result<Vec<[bool; 3]>, Error> {
        let mut json = json!({
            "model_type": model_type, "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        let layers = Model::from_config(&json)?.config.layers;
        let parts = layers
            .iter()
            .map(|layer| [layer.attention, layer.mixer, layer.mlp]);
        Ok(parts.collect())
    }

    const ATTENTION: [bool; 3] = [true, false, true];
    const MIXER: [bool; 3] = [false, true, true];

    #[test]
    fn layers_have_what_the_config_says() {
        let parts = |model_type, changes| read(model_type, &changes).unwrap();
        assert_eq!(parts("llama", json!({})), [ATTENTION; 4]);
        assert_eq!(parts("falcon_h1", json!({})), [[true; 3]; 4]);
        let usual = [MIXER, MIXER, MIXER, ATTENTION];
        assert_eq!(parts("qwen3_next", json!({})), usual);
        let every = json!({"full_attention_interval": 2});
        assert_eq!(
            parts("qwen3_5_text", every),
            [MIXER, ATTENTION, MIXER, ATTENTION]
        );
        let names =
            json!({"layer_types": ["mamba", "attention", "full_attention", "linear_attention"]});
        assert_eq!(
            parts("granitemoehybrid", names),
            [MIXER, ATTENTION, ATTENTION, MIXER]
        );
        assert_eq!(parts("granitemoehybrid", json!({})), [MIXER; 4]);
        assert_eq!(parts("lfm2", json!({})), [ATTENTION; 4]);
        let listed = json!({"full_attn_idxs": [2]});
        assert_eq!(parts("lfm2", listed), [MIXER, MIXER, ATTENTION, MIXER]);
        let [attention, mixer, mlp] = [0, 1, 2].map(|only| [0, 1, 2].map(|part| part == only));
        let letters = json!({"hybrid_override_pattern": "M*-E"});
        assert_eq!(parts("nemotron_h", letters), [mixer, attention, mlp, mlp]);
    }

    #[test]
    fn what_no_layer_can_be_is_refused_by_name() {
        let refused = |model_type, changes, message: &str| {
            let error = read(model_type, &changes).unwrap_err();
            assert_eq!(error.to_string(), message);
        };
        refused(
            "lfm2",
            json!({"layer_types": ["conv", "conv", "conv", "linear_attention"]}),
            "config.json: layer_types is [\"conv\",\"conv\",\"conv\",\"linear_attention\"], which is not implemented; \
             supported: full_attention, conv",
        );
        refused(
            "nemotron_h",
            json!({"hybrid_override_pattern": "M*-"}),
            "config.json: hybrid_override_pattern is \"M*-\", expected one of the letters M, *, - and E for each of \
             num_hidden_layers, 4",
        );
        refused(
            "qwen3_next",
            json!({"linear_num_key_heads": 5}),
            "config.json: linear_num_key_heads is 5, expected a divisor of the 32 heads",
        );
        refused(
            "falcon_h1",
            json!({"mamba_rms_norm": true}),
            "config.json: mamba_norm_before_gate is true, which is not implemented; supported: false",
        );
        refused(
            "falcon_h1",
            json!({"ssm_multipliers": [1.0, 2.0]}),
            "config.json: ssm_multipliers is [1.0,2.0], expected a list of 5 numbers above 0",
        );
    }
}
