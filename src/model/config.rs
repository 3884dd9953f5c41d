//! `config.json` as numbers that the forward pass can trust.
//!
//! Absent keys get what transformers 5.23 gives them. Both spellings of the rotary settings are read: `rope_theta` with
//! `rope_scaling`, and `rope_parameters`. What the forward pass does not compute is refused here, by name.

use super::Error;
use super::arch::{Architecture, WindowRule};
use super::keys::Keys;
use serde_json::Value;
use tch::Kind;

/// The function between the gate and its product with `up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Relu,
}

/// How the rotary frequencies are stretched for contexts longer than those of pretraining.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    Default,
    Linear {
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
}

/// The rotary embedding's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// A model's numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub activation: Activation,
    pub rope: RopeConfig,
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub tie_word_embeddings: bool,
    /// For each layer, how many positions a token sees, itself included; `None` for all.
    pub windows: Vec<Option<usize>>,
    /// The dtype that the config names, if it names one.
    pub kind: Option<Kind>,
}

impl Config {
    /// Reads and checks the numbers of a family's `config.json`.
    pub(super) fn new(json: &Value, arch: &Architecture) -> Result<Self, Error> {
        let keys = Keys {
            json,
            path: "",
            defaults: arch.defaults,
        };
        for &(key, accepted) in arch.requires {
            keys.require(key, accepted)?;
        }
        let hidden_size = keys.size("hidden_size")?;
        let n_heads = keys.size("num_attention_heads")?;
        let n_kv_heads = keys.usize("num_key_value_heads")?.unwrap_or(n_heads);
        if n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
            return Err(keys.invalid(
                "num_key_value_heads",
                format!("a divisor of num_attention_heads, {n_heads}"),
            ));
        }
        let head_dim = match keys.usize("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size % n_heads == 0 => hidden_size / n_heads,
            None => {
                return Err(keys.invalid(
                    "hidden_size",
                    format!("a multiple of num_attention_heads, {n_heads}, or head_dim"),
                ));
            }
        };
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(keys.invalid("head_dim", "an even number above 0"));
        }
        let n_layers = keys.size("num_hidden_layers")?;
        let max_position_embeddings = keys.size("max_position_embeddings")?;
        Ok(Self {
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            max_position_embeddings,
            norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
            activation: activation(&keys)?,
            rope: rope(&keys, max_position_embeddings as f64)?,
            attention_bias: keys.bool("attention_bias")?.unwrap_or(false),
            mlp_bias: keys.bool("mlp_bias")?.unwrap_or(false),
            tie_word_embeddings: keys.bool("tie_word_embeddings")?.unwrap_or(false),
            windows: windows(&keys, arch.window, n_layers)?,
            kind: kind(&keys)?,
        })
    }
}

fn activation(keys: &Keys<'_>) -> Result<Activation, Error> {
    match keys.str("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        _ => Err(keys.unsupported("hidden_act", "silu, gelu, gelu_pytorch_tanh, relu")),
    }
}

fn kind(keys: &Keys<'_>) -> Result<Option<Kind>, Error> {
    let key = if keys.get("dtype").is_some() {
        "dtype"
    } else {
        "torch_dtype"
    };
    match keys.str(key)? {
        None => Ok(None),
        Some("float32") => Ok(Some(Kind::Float)),
        Some("float16") => Ok(Some(Kind::Half)),
        Some("bfloat16") => Ok(Some(Kind::BFloat16)),
        Some(_) => Err(keys.unsupported(key, "float32, float16, bfloat16")),
    }
}

fn windows(
    keys: &Keys<'_>,
    rule: WindowRule,
    n_layers: usize,
) -> Result<Vec<Option<usize>>, Error> {
    match rule {
        WindowRule::Never => Ok(vec![None; n_layers]),
        WindowRule::EveryLayer => Ok(vec![keys.window()?; n_layers]),
        WindowRule::ByLayerType => {
            let window = match keys.bool("use_sliding_window")? {
                Some(true) => keys.window()?,
                _ => None,
            };
            let Some(types) = keys.get("layer_types") else {
                let first = keys.usize("max_window_layers")?.ok_or(Error::Missing {
                    key: "max_window_layers",
                })?;
                return Ok((0..n_layers)
                    .map(|layer| window.filter(|_| layer >= first))
                    .collect());
            };
            let types = types
                .as_array()
                .filter(|types| types.len() == n_layers)
                .ok_or_else(|| {
                    keys.invalid(
                        "layer_types",
                        format!("a list of num_hidden_layers, {n_layers}, names"),
                    )
                })?;
            types
                .iter()
                .map(|name| match (name.as_str(), window) {
                    (Some("full_attention"), _) => Ok(None),
                    (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
                    (Some("sliding_attention"), None) => Err(keys.invalid(
                        "use_sliding_window",
                        "true with a sliding_window, because layer_types names sliding_attention",
                    )),
                    _ => Err(keys.unsupported("layer_types", "full_attention, sliding_attention")),
                })
                .collect()
        }
    }
}

fn rope(keys: &Keys<'_>, max_position_embeddings: f64) -> Result<RopeConfig, Error> {
    // transformers lets rope_scaling win where a config has both.
    let path = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find(|key| keys.get(key).is_some());
    let empty = Value::Object(serde_json::Map::new());
    let rope = Keys {
        json: path.and_then(|key| keys.get(key)).unwrap_or(&empty),
        path: path.unwrap_or("rope_parameters"),
        defaults: &[],
    };
    let Some(entries) = rope.json.as_object() else {
        return Err(keys.invalid(rope.path, "an object"));
    };
    if let Some((key, _)) = entries.iter().find(|(_, value)| value.is_object()) {
        return Err(rope.unsupported(key, "one rotary embedding for all layers"));
    }
    rope.require("partial_rotary_factor", &["1.0"])?;
    let theta = match rope.positive("rope_theta")? {
        Some(theta) => theta,
        None => keys.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    let type_key = if rope.get("rope_type").is_some() {
        "rope_type"
    } else {
        "type"
    };
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
    let scaling = match rope.str(type_key)?.unwrap_or("default") {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()? },
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
                attention_factor: yarn_attention_factor(&rope, factor)?,
                beta_fast: rope.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.positive("beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings,
                truncate: rope.bool("truncate")?.unwrap_or(true),
            }
        }
        _ => return Err(rope.unsupported(type_key, "default, linear, dynamic, llama3, yarn")),
    };
    Ok(RopeConfig { theta, scaling })
}

/// The published `0.1 ln(factor) + 1`, unless the config gives the number or the two weights of its quotient.
fn yarn_attention_factor(rope: &Keys<'_>, factor: f64) -> Result<f64, Error> {
    let mscale = |weight: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * weight * factor.ln() + 1.0
        }
    };
    if let Some(given) = rope.positive("attention_factor")? {
        return Ok(given);
    }
    Ok(match (rope.f64("mscale")?, rope.f64("mscale_all_dim")?) {
        (Some(weight), Some(all)) if weight != 0.0 && all != 0.0 => mscale(weight) / mscale(all),
        _ => mscale(1.0),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::Model;
    use super::*;
    use serde_json::json;

    fn merged(model_type: &str, changes: &Value) -> Value {
        let mut json = json!({
            "model_type": model_type, "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        json
    }

    fn read(model_type: &str, changes: &Value) -> Config {
        Model::from_config(&merged(model_type, changes))
            .unwrap()
            .config
    }

    #[track_caller]
    fn refused(model_type: &str, changes: &Value, message: &str) {
        let error = Model::from_config(&merged(model_type, changes)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn absent_keys_get_the_defaults_of_the_family() {
        let llama = read("llama", &json!({"num_key_value_heads": null}));
        assert_eq!((llama.n_kv_heads, llama.head_dim), (4, 12));
        assert_eq!((llama.rope.theta, llama.norm_eps), (10_000.0, 1e-6));
        assert_eq!(llama.activation, Activation::Silu);
        assert!(!llama.tie_word_embeddings && !llama.attention_bias);
        assert_eq!(read("mistral", &json!({})).windows, [Some(4096); 3]);
        assert_eq!(read("qwen3", &json!({})).head_dim, 128);
        assert_eq!(
            read("qwen2", &json!({"torch_dtype": "bfloat16"})).kind,
            Some(Kind::BFloat16)
        );
    }

    #[test]
    fn windows_follow_the_rule_of_the_family() {
        let on = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1});
        assert_eq!(read("qwen2", &on).windows, [None, Some(5), Some(5)]);
        assert_eq!(read("llama", &on).windows, [None; 3]);
        assert_eq!(
            read("qwen3", &json!({"sliding_window": 5})).windows,
            [None; 3]
        );
        assert_eq!(
            read("mistral", &json!({"sliding_window": null})).windows,
            [None; 3]
        );
    }

    #[test]
    fn both_spellings_of_the_rotary_settings_are_read() {
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}});
        let new =
            json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}});
        let expected = RopeConfig {
            theta: 5e5,
            scaling: RopeScaling::Linear { factor: 2.0 },
        };
        assert_eq!(read("llama", &old).rope, expected);
        assert_eq!(read("llama", &new).rope, expected);
        let partly = json!({"rope_theta": 5e5, "rope_parameters": {}, "rope_scaling": null});
        let expected = RopeConfig {
            theta: 5e5,
            scaling: RopeScaling::Default,
        };
        assert_eq!(read("llama", &partly).rope, expected);
    }

    #[test]
    fn impossible_numbers_are_refused_by_name() {
        refused(
            "llama",
            &json!({"vocab_size": null}),
            "config.json: vocab_size is missing",
        );
        refused(
            "llama",
            &json!({"hidden_size": -1}),
            "config.json: hidden_size is -1, expected a whole number below 2^24",
        );
        refused(
            "llama",
            &json!({"num_key_value_heads": 3}),
            "config.json: num_key_value_heads is 3, expected a divisor of num_attention_heads, 4",
        );
        refused(
            "llama",
            &json!({"hidden_size": 50}),
            "config.json: hidden_size is 50, expected a multiple of num_attention_heads, 4, or head_dim",
        );
        refused(
            "llama",
            &json!({"head_dim": 13}),
            "config.json: head_dim is 13, expected an even number above 0",
        );
        refused(
            "llama",
            &json!({"rope_scaling": {"rope_type": "linear"}}),
            "config.json: rope_scaling.factor is absent, expected a number",
        );
        refused(
            "qwen2",
            &json!({"layer_types": ["full_attention"]}),
            "config.json: layer_types is [\"full_attention\"], expected a list of num_hidden_layers, 3, names",
        );
    }

    #[test]
    fn what_the_forward_pass_does_not_compute_is_refused_by_name() {
        refused(
            "llama",
            &json!({"hidden_act": "mish"}),
            "config.json: hidden_act is \"mish\", which is not implemented; supported: silu, gelu, gelu_pytorch_tanh, relu",
        );
        refused(
            "llama",
            &json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}),
            "config.json: rope_scaling.rope_type is \"longrope\", which is not implemented; \
             supported: default, linear, dynamic, llama3, yarn",
        );
        refused(
            "llama",
            &json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "config.json: rope_parameters.full_attention is {\"rope_type\":\"default\"}, which is not implemented; \
             supported: one rotary embedding for all layers",
        );
        refused(
            "mistral",
            &json!({"layer_types": ["full_attention"]}),
            "config.json: layer_types is [\"full_attention\"], which is not implemented; supported: null",
        );
        refused(
            "qwen2",
            &json!({"is_causal": false}),
            "config.json: is_causal is false, which is not implemented; supported: true",
        );
        let whole = json!({"is_causal": true, "partial_rotary_factor": 1});
        assert_eq!(read("llama", &whole).n_layers, 3);
        refused(
            "llama",
            &json!({"partial_rotary_factor": 0.5}),
            "config.json: partial_rotary_factor is 0.5, which is not implemented; supported: 1.0",
        );
    }
}
