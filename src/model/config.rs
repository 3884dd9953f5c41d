//! `config.json` as numbers that the forward pass can trust.
//!
//! Absent keys get what transformers 5.23 gives them. Both spellings of the rotary settings are read: `rope_theta` with
//! `rope_scaling`, and `rope_parameters`. What the forward pass does not compute is refused here, by name.

mod experts;
mod latent;
mod layers;
mod mixer;
mod rotary;
mod usual;

use super::Error;
use super::arch::{Alibi, Architecture, AttentionScale, Bias, Joint, NormSite, Scale, Temperature};
use super::keys::Keys;
pub use experts::ExpertsConfig;
pub use latent::LatentConfig;
pub use layers::{KeysValues, LayerConfig};
use layers::{Shape, layers};
use mixer::Parts;
pub use mixer::{MixerConfig, MultipliersConfig};
pub use rotary::{RopeConfig, RopeScaling};
use rotary::{RotarySettings, ropes};
use serde_json::Value;
use tch::Kind;
use usual::usual;

/// The function between the gate and its product with `up`, or inside a plain MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    Silu,
    Gelu,
    /// `x sigmoid(1.702 x)`
    QuickGelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    Relu,
    /// The square of relu.
    Relu2,
    /// xIELU (Huang and Schlag 2024, arXiv:2411.13010), with numbers that each layer stores.
    Xielu,
    /// `gate sigmoid(alpha gate) (up + 1)`, with both clamped to `limit` first; a gate has no lower bound.
    ClampedSwiglu {
        alpha: f64,
        limit: f64,
    },
}

/// Which linears have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each kind of linear")]
pub struct Biases {
    pub attention: bool,
    pub attention_output: bool,
    pub mlp: bool,
    pub head: bool,
}

/// What each layer takes of its tokens themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInputConfig {
    /// Numbers of a token in a layer.
    pub width: usize,
    /// Tokens that have any.
    pub vocab_size: usize,
    /// The token whose numbers those take that stand for images.
    pub stand_in: u32,
}

impl LayerInputConfig {
    /// Nothing where its width is 0.
    fn new(keys: &Keys<'_>) -> Result<Option<Self>, Error> {
        let width = keys.usize("hidden_size_per_layer_input")?.unwrap_or(0);
        if width == 0 {
            return Ok(None);
        }
        let vocab_size = keys.size("vocab_size_per_layer_input")?;
        Ok(Some(Self {
            width,
            vocab_size,
            stand_in: keys.usize("pad_token_id")?.unwrap_or(0) as u32,
        }))
    }
}

/// What a query is multiplied by at its position: `1 + strength ln(1 + floor((position + start) / interval))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemperatureConfig {
    pub strength: f64,
    pub start: f64,
    pub interval: f64,
    /// Only in layers without a rotary embedding.
    pub without_rope: bool,
}

/// A model's numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    /// Where queries, keys and values are made of narrower vectors.
    pub latent: Option<LatentConfig>,
    /// Whether the norms of queries and keys that the family may have are there.
    pub qk_norm: bool,
    /// The bound that Q, K and V are clipped to.
    pub qkv_clip: Option<f64>,
    pub temperature: Option<TemperatureConfig>,
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub activation: Activation,
    pub ropes: Vec<RopeConfig>,
    pub biases: Biases,
    pub experts: Option<ExpertsConfig>,
    pub layer_input: Option<LayerInputConfig>,
    /// The mixer that some layers have in attention's place, or beside it.
    pub mixer: Option<MixerConfig>,
    pub multipliers: MultipliersConfig,
    /// Whether attention and MLP read the same residual stream.
    pub parallel: bool,
    pub attention_scale: f64,
    /// What the slopes of falling scores are multiplied by, where they fall.
    pub alibi: Option<f64>,
    pub attention_softcap: Option<f64>,
    pub embedding_scale: Option<f64>,
    /// Of what attention and MLP add to the residual stream.
    pub residual_scale: Option<f64>,
    pub logit_scale: Option<f64>,
    pub logit_softcap: Option<f64>,
    pub tie_word_embeddings: bool,
    pub layers: Vec<LayerConfig>,
    /// The dtype that the config names, if it names one.
    pub kind: Option<Kind>,
}

/// What transformers adds to the mean squares of latents, whatever the config says for the other norms.
const LATENT_NORM_EPS: f64 = 1e-6;

impl Config {
    /// What the norm there adds to the mean square or the variance.
    pub fn norm_eps_at(&self, site: NormSite) -> f64 {
        match site {
            NormSite::QueryLatent | NormSite::KeyValueLatent => LATENT_NORM_EPS,
            _ => self.norm_eps,
        }
    }

    /// Reads and checks the numbers of a family's `config.json`.
    pub(super) fn new(json: &Value, arch: &Architecture, path: &str) -> Result<Self, Error> {
        let json = usual(json, arch);
        let keys = Keys { json: &json, path };
        for &(key, accepted) in arch.requires {
            keys.require(key, accepted)?;
        }
        let hidden_size = keys.size("hidden_size")?;
        let n_heads = keys.size("num_attention_heads")?;
        let shape = Shape::new(&keys, arch, hidden_size, n_heads)?;
        let n_layers = keys.size("num_hidden_layers")?;
        let max_position_embeddings = keys.size("max_position_embeddings")?;
        let flag = |bias: Bias| -> Result<bool, Error> {
            match bias {
                Bias::Never => Ok(false),
                Bias::Always => Ok(true),
                Bias::If(key) => Ok(keys.bool(key)?.unwrap_or(false)),
            }
        };
        let scale = |scale: Scale| -> Result<Option<f64>, Error> {
            Ok(match scale {
                Scale::One => None,
                Scale::By(key) => keys.positive(key)?,
                Scale::Over(key) => keys.positive(key)?.map(f64::recip),
                Scale::RootOfHidden => Some((hidden_size as f64).sqrt()),
                Scale::OverHidden(key) => {
                    (keys.positive(key)?).map(|number| number / hidden_size as f64)
                }
                Scale::OverRootOfLayers(key) => {
                    (keys.positive(key)?).map(|number| number / (n_layers as f64).sqrt())
                }
            })
        };
        let mixer = match &arch.mixer {
            None => None,
            Some(row) => Some(MixerConfig::new(&keys, row, hidden_size)?),
        };
        let multipliers = match &arch.multipliers {
            None => MultipliersConfig::default(),
            Some(row) => MultipliersConfig::new(&keys, row)?,
        };
        let parts = Parts::of_layers(&keys, arch.mixer.as_ref(), arch.experts.is_some(), n_layers)?;
        let mut experts = match &arch.experts {
            None => None,
            Some(row) => ExpertsConfig::new(&keys, row, n_layers)?,
        };
        let sparse = experts.iter_mut().flat_map(|experts| &mut experts.layers);
        for (sparse, parts) in sparse.zip(&parts) {
            *sparse &= parts.experts;
        }
        let experts = experts.filter(|experts| experts.layers.contains(&true));
        let rotary = RotarySettings::new(&keys);
        let layers = layers(&keys, arch, &parts, shape, n_heads)?;
        let turning_dim = |windowed: bool| {
            let found = (layers.iter()).find(|layer| layer.window.is_some() == windowed);
            let head_dim = found.map_or(shape.head_dim, |layer| layer.head_dim);
            shape.latent.map_or(head_dim, |latent| latent.turning_dim)
        };
        let ropes = ropes(
            &keys,
            &rotary,
            arch,
            [turning_dim(false), turning_dim(true)],
            max_position_embeddings as f64,
        )?;
        let head_dim = shape.head_dim;
        Ok(Self {
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            n_layers,
            n_heads,
            latent: shape.latent,
            qk_norm: match arch.attention.qk_norm_if {
                None => true,
                Some(key) => keys.bool(key)?.unwrap_or(false),
            },
            qkv_clip: match arch.attention.clip {
                None => None,
                Some(key) => keys.positive(key)?,
            },
            temperature: temperature(&keys, &rotary, arch.attention.temperature)?,
            max_position_embeddings,
            norm_eps: keys.positive(arch.norm_eps)?.unwrap_or(1e-6),
            activation: activation(&keys, "hidden_act")?,
            layers,
            ropes,
            biases: Biases {
                attention: flag(arch.attention.bias)?,
                attention_output: flag(arch.attention.output_bias)?,
                mlp: flag(arch.mlp.bias)?,
                head: flag(arch.head_bias)?,
            },
            experts,
            layer_input: match arch.layer_input {
                None => None,
                Some(_) => LayerInputConfig::new(&keys)?,
            },
            mixer,
            multipliers,
            parallel: match arch.joint {
                Joint::Sequential => false,
                Joint::Parallel => true,
                Joint::ParallelIf(key) => keys.bool(key)?.unwrap_or(false),
            },
            attention_scale: multipliers.scores.unwrap_or(1.0)
                * match arch.attention.scale {
                    AttentionScale::One => 1.0,
                    AttentionScale::HeadDim => 1.0 / (head_dim as f64).sqrt(),
                    AttentionScale::StretchedHeadDim => {
                        rotary.mscale()?.powi(2) / (head_dim as f64).sqrt()
                    }
                    AttentionScale::OverRootOf(key) => {
                        let number = keys.positive(key)?.ok_or_else(|| keys.missing(key))?;
                        1.0 / number.sqrt()
                    }
                    AttentionScale::By(key) => {
                        keys.positive(key)?.ok_or_else(|| keys.missing(key))?
                    }
                },
            alibi: match arch.attention.alibi {
                Alibi::Never => None,
                Alibi::Always => Some(1.0),
                Alibi::ScaledIf(key) => {
                    let falls = keys.bool(key)? == Some(true);
                    falls.then(|| 1.0 / (head_dim as f64).sqrt())
                }
            },
            attention_softcap: keys.positive("attn_logit_softcapping")?,
            embedding_scale: scale(arch.scales.embedding)?,
            residual_scale: scale(arch.scales.residual)?,
            logit_scale: scale(arch.scales.logits)?,
            logit_softcap: keys.positive("final_logit_softcapping")?,
            tie_word_embeddings: keys.bool("tie_word_embeddings")?.unwrap_or(false),
            kind: kind(&keys)?,
        })
    }
}

/// The function that `key` names; without one, SiLU.
pub(super) fn activation(keys: &Keys<'_>, key: &str) -> Result<Activation, Error> {
    match keys.str(key)?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "relu2" => Ok(Activation::Relu2),
        "xielu" => Ok(Activation::Xielu),
        "swigluoai" => Ok(Activation::ClampedSwiglu {
            alpha: keys.positive("swiglu_alpha")?.unwrap_or(1.702),
            limit: keys.positive("swiglu_limit")?.unwrap_or(7.0),
        }),
        _ => Err(keys.unsupported(
            key,
            "silu, gelu, quick_gelu, gelu_pytorch_tanh, gelu_new, gelu_fast, relu, relu2, xielu",
        )),
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

fn temperature(
    keys: &Keys<'_>,
    rotary: &RotarySettings<'_>,
    temperature: Temperature,
) -> Result<Option<TemperatureConfig>, Error> {
    let number = |keys: &Keys<'_>, key| keys.positive(key)?.ok_or_else(|| keys.missing(key));
    let tuned = keys.get("attn_temperature_tuning");
    Ok(match temperature {
        Temperature::One => None,
        // Early configs have numbers here.
        Temperature::WithoutRope if tuned.is_none_or(|value| value == false || value == 0) => None,
        Temperature::WithoutRope => Some(TemperatureConfig {
            strength: number(keys, "attn_scale")?,
            start: 1.0,
            interval: number(keys, "floor_scale")?,
            without_rope: true,
        }),
        Temperature::Stretched => Some(TemperatureConfig {
            strength: number(&rotary.keys(), "llama_4_scaling_beta")?,
            start: 0.0,
            interval: number(&rotary.keys(), "original_max_position_embeddings")?,
            without_rope: false,
        }),
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::Model;
    use super::super::arch;
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

    fn windows(model_type: &str, changes: &Value) -> Vec<Option<usize>> {
        let layers = read(model_type, changes).layers;
        layers.iter().map(|layer| layer.window).collect()
    }

    #[track_caller]
    fn refused(model_type: &str, changes: &Value, message: &str) {
        let error = Model::from_config(&merged(model_type, changes)).unwrap_err();
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn absent_keys_get_the_defaults_of_the_family() {
        let llama = read("llama", &json!({"num_key_value_heads": null}));
        let layer = llama.layers[0];
        assert_eq!((layer.n_kv_heads, layer.head_dim), (4, 12));
        assert_eq!((llama.ropes[0].theta, llama.norm_eps), (10_000.0, 1e-6));
        assert_eq!(llama.activation, Activation::Silu);
        assert!(!llama.tie_word_embeddings && !llama.biases.attention);
        assert_eq!(windows("mistral", &json!({})), [Some(4096); 3]);
        assert_eq!(read("qwen3", &json!({})).layers[0].head_dim, 128);
        assert_eq!(
            read("qwen2", &json!({"torch_dtype": "bfloat16"})).kind,
            Some(Kind::BFloat16)
        );
    }

    #[test]
    fn windows_follow_the_rule_of_the_family() {
        let on = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1});
        assert_eq!(windows("qwen2", &on), [None, Some(5), Some(5)]);
        assert_eq!(windows("llama", &on), [None; 3]);
        assert_eq!(windows("qwen3", &json!({"sliding_window": 5})), [None; 3]);
        assert_eq!(
            windows("mistral", &json!({"sliding_window": null})),
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
            dim: 12,
            neighbours: false,
            axes: Vec::new(),
            scaling: RopeScaling::Linear { factor: 2.0 },
        };
        assert_eq!(read("llama", &old).ropes, std::slice::from_ref(&expected));
        assert_eq!(read("llama", &new).ropes, [expected]);
        let partly = json!({"rope_theta": 5e5, "rope_parameters": {}, "rope_scaling": null});
        let expected = RopeConfig {
            theta: 5e5,
            dim: 12,
            neighbours: false,
            axes: Vec::new(),
            scaling: RopeScaling::Default,
        };
        assert_eq!(read("llama", &partly).ropes, [expected]);
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
            "config.json: hidden_act is \"mish\", which is not implemented; supported: silu, gelu, quick_gelu, gelu_pytorch_tanh, gelu_new, gelu_fast, relu, relu2, xielu",
        );
        refused(
            "llama",
            &json!({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}),
            "config.json: rope_scaling.rope_type is \"ntk\", which is not implemented; \
             supported: default, linear, dynamic, llama3, yarn, longrope, proportional",
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

    #[test]
    fn how_many_dimensions_turn_may_be_said_by_a_count() {
        let llama = arch::find(&json!({"model_type": "llama"})).unwrap().arch;
        let rotary = arch::Rotary {
            dim: Some("rotary_dim"),
            ..llama.rotary
        };
        let arch = Architecture { rotary, ..*llama };
        let dim = |changes| {
            let config = Config::new(&merged("llama", &changes), &arch, "");
            config.map(|config| config.ropes[0].dim)
        };
        assert_eq!(dim(json!({})).unwrap(), 12);
        assert_eq!(dim(json!({"rotary_dim": 8})).unwrap(), 8);
        assert_eq!(
            dim(json!({"rotary_dim": 14})).unwrap_err().to_string(),
            "config.json: rotary_dim is 14, expected a part that leaves an even number of head_dim, 12"
        );
        assert_eq!(read("llama", &json!({"rotary_dim": 8})).ropes[0].dim, 12);
    }

    #[test]
    fn chunks_are_where_positions_are_or_where_layer_types_says_so() {
        let chunks = |changes| -> Vec<_> {
            let layers = read("llama4_text", &changes).layers;
            assert!(layers.iter().all(|layer| layer.window.is_none()));
            layers.iter().map(|layer| layer.chunk).collect()
        };
        let by_positions = json!({"attention_chunk_size": 7, "no_rope_layers": [1, 0, 1]});
        assert_eq!(chunks(by_positions), [Some(7), None, Some(7)]);
        let names = ["full_attention", "chunked_attention", "full_attention"];
        assert_eq!(
            chunks(json!({"layer_types": names})),
            [None, Some(8192), None]
        );
        refused(
            "llama4_text",
            &json!({"layer_types": vec!["sliding_attention"; 3]}),
            "config.json: layer_types is [\"sliding_attention\",\"sliding_attention\",\"sliding_attention\"], which is not \
             implemented; supported: full_attention, chunked_attention",
        );
    }

    #[test]
    fn latents_have_widths_of_their_own() {
        let changes = json!({"num_key_value_heads": 4, "q_lora_rank": null, "qk_rope_head_dim": 6});
        let config = read("youtu", &changes);
        let expected = LatentConfig {
            query_rank: None,
            rank: 512,
            head_dim: 134,
            turning_dim: 6,
            value_head_dim: 128,
        };
        assert_eq!(config.latent, Some(expected));
        let layer = config.layers[0];
        assert_eq!((layer.head_dim, layer.value_head_dim), (134, 128));
        assert_eq!(config.ropes[0].dim, 6);
        refused(
            "youtu",
            &json!({}),
            "config.json: num_key_value_heads is 2, expected num_attention_heads, 4: every head has its own keys",
        );
        refused(
            "youtu",
            &json!({"num_key_value_heads": 4, "qk_rope_head_dim": 7}),
            "config.json: qk_rope_head_dim is 7, expected an even number, as qk_nope_head_dim",
        );
    }
}
