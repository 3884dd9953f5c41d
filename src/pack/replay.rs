//! `--quant-config FILE`: the settings of somebody else's quantization, to run it again.
//!
//! Takes AutoAWQ's `quant_config`, GPTQModel's and AutoGPTQ's `quantize_config.json`, the `quantization_config` that
//! transformers writes, or a whole `config.json` with that inside. A setting that would change the result and that is not
//! honoured here is an error, so that a replay never silently means something else.

use serde_json::{Map, Value};

use super::fields::{
    ASYMMETRIC, BITS, DESC_ACT, Fields, GROUP_SIZE, LAYOUT, METHOD, Names, SYMMETRIC,
    inside_model_config,
};
use super::{Error, Format};
use crate::quant::GroupSize;

/// The settings that a file names; `None` where it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Replay {
    /// Its [`Format::method`] is the method.
    pub format: Option<Format>,
    pub bits: Option<u8>,
    pub group_size: Option<GroupSize>,
    pub symmetric: Option<bool>,
    pub desc_act: Option<bool>,
    pub static_groups: Option<bool>,
    pub act_group_aware: Option<bool>,
    pub damp_percent: Option<f64>,
}

const STATIC_GROUPS: Names = &["static_groups"];
const ACT_GROUP_AWARE: Names = &["act_group_aware"];
const DAMP_PERCENT: Names = &["damp_percent"];

/// The settings in [`Replay`].
const READ: &[Names] = &[
    BITS,
    GROUP_SIZE,
    METHOD,
    SYMMETRIC,
    ASYMMETRIC,
    DESC_ACT,
    LAYOUT,
    STATIC_GROUPS,
    ACT_GROUP_AWARE,
    DAMP_PERCENT,
];

/// Settings that change the result, the one value that agrees with what is done here besides absence, and what is done.
const FIXED: &[(Names, &str, &str)] = &[
    (&["lm_head"], "false", "the output head stays in float"),
    (
        &["modules_to_not_convert"],
        r#"["lm_head"]"#,
        "the model's family decides which layers are quantized",
    ),
    (
        &["modules_in_block_to_quantize"],
        "[]",
        "the model's family decides which layers are quantized",
    ),
    (&["dynamic"], "{}", "all layers share one scheme"),
    (
        &["true_sequential"],
        "true",
        "later layers always see the error of earlier ones",
    ),
    (&["mse"], "0.0", "grids are not searched with this norm"),
    (&["gptaq"], "{}", "GPTAQ is not implemented"),
    (&["foem"], "{}", "FOEM is not implemented"),
    (
        &["pack_dtype"],
        r#""int32""#,
        "codes are packed in 32-bit words",
    ),
    (
        &["is_marlin_format"],
        "false",
        "the Marlin layout is not written",
    ),
];

/// Keys that describe a calibration run, a loader or a file, and not the quantization.
const HARMLESS: &[&str] = &[
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "dataset",
    "disable_exllama",
    "do_fuse",
    "exllama_config",
    "fuse_max_seq_len",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_to_fuse",
    "pad_token_id",
    "tokenizer",
    "use_cuda_fp16",
    "use_exllama",
];

impl Replay {
    /// Reads a parsed file.
    ///
    /// # Errors
    /// Wrong types, contradictions, and settings that cannot be followed, by the key's name.
    pub fn from_json(file: &Value) -> Result<Self, Error> {
        let whole_config = file.get("model_type").is_some() || file.get("architectures").is_some();
        let settings = match inside_model_config(file) {
            Some(settings) => settings,
            None if whole_config => {
                return Err(Error::MissingKey {
                    key: "quantization_config",
                });
            }
            None => file.as_object().ok_or_else(|| Error::Setting {
                key: "the file".to_owned(),
                value: file.to_string(),
                expected: "a JSON object".to_owned(),
            })?,
        };
        let fields = Fields::new(settings);
        for &(names, agreeing, reason) in FIXED {
            if let Some((key, value)) = fields.find(names)?
                && !is_off(value, agreeing)
            {
                return Err(not_replayed(key, value, reason));
            }
        }
        refuse_unknown(settings)?;
        Ok(Self {
            format: fields.format()?,
            bits: fields.bits()?,
            group_size: fields.group_size()?,
            symmetric: fields.symmetric()?,
            desc_act: fields.flag(DESC_ACT)?,
            static_groups: fields.flag(STATIC_GROUPS)?,
            act_group_aware: fields.flag(ACT_GROUP_AWARE)?,
            damp_percent: fields.number(DAMP_PERCENT)?,
        })
    }
}

/// A key that nothing here knows is taken for switched off if its value says so, and refused otherwise.
fn refuse_unknown(settings: &Map<String, Value>) -> Result<(), Error> {
    let read = READ.iter().copied();
    let fixed = FIXED.iter().map(|&(names, ..)| names);
    let known: Vec<&str> = read
        .chain(fixed)
        .flatten()
        .chain(HARMLESS)
        .copied()
        .collect();
    let unknown = settings
        .iter()
        .find(|(key, value)| !known.contains(&key.as_str()) && !is_off(value, "false"));
    match unknown {
        Some((key, value)) => Err(not_replayed(
            key,
            value,
            "the key is not known; remove it if the result does not depend on it",
        )),
        None => Ok(()),
    }
}

/// Whether `value` is `agreeing` or says nothing.
fn is_off(value: &Value, agreeing: &str) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) if items.is_empty() => true,
        Value::Object(members) if members.is_empty() => true,
        Value::Number(number) if agreeing == "0.0" => number.as_f64() == Some(0.0),
        value => agreeing
            .parse()
            .is_ok_and(|agreeing: Value| *value == agreeing),
    }
}

fn not_replayed(key: &str, value: &Value, reason: &'static str) -> Error {
    Error::NotReplayed {
        key: key.to_owned(),
        value: value.to_string(),
        reason,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_files_of_the_peers_are_read() {
        let columns = GroupSize::Columns;
        for (file, expected) in [
            (json!({}), Replay::default()),
            // AutoAWQ's README
            (
                json!({"zero_point": true, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}),
                Replay {
                    format: Some(Format::AwqGemm),
                    bits: Some(4),
                    group_size: Some(columns(128)),
                    symmetric: Some(false),
                    ..Replay::default()
                },
            ),
            // AutoGPTQ's quantize_config.json
            (
                json!({"bits": 4, "group_size": -1, "damp_percent": 0.01, "desc_act": true, "static_groups": true,
                       "sym": true, "true_sequential": true, "model_name_or_path": "x",
                       "model_file_base_name": "model", "quant_method": "gptq", "checkpoint_format": "gptq"}),
                Replay {
                    format: Some(Format::GptqV1),
                    bits: Some(4),
                    group_size: Some(GroupSize::WholeRow),
                    symmetric: Some(true),
                    desc_act: Some(true),
                    static_groups: Some(true),
                    act_group_aware: None,
                    damp_percent: Some(0.01),
                },
            ),
            // GPTQModel's, with the solver's settings in `meta`, inside a whole config.json
            (
                json!({"model_type": "llama", "quantization_config": {
                    "bits": 8, "dynamic": {}, "group_size": 32, "desc_act": false, "lm_head": false, "method": "gptq",
                    "quant_method": "gptq", "format": "gptq_v2", "checkpoint_format": "gptq_v2",
                    "pack_dtype": "int32", "sym": true, "rotation": null, "offload_to_disk": false,
                    "meta": {"quantizer": ["gptqmodel:7.7.0"], "damp_percent": 0.05, "act_group_aware": true,
                             "mse": 0.0, "gptaq": null, "true_sequential": true, "gc_mode": "interval"}}}),
                Replay {
                    format: Some(Format::GptqV2),
                    bits: Some(8),
                    group_size: Some(columns(32)),
                    symmetric: Some(true),
                    desc_act: Some(false),
                    act_group_aware: Some(true),
                    damp_percent: Some(0.05),
                    ..Replay::default()
                },
            ),
            // transformers' AwqConfig
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": true, "version": "gemm",
                       "do_fuse": false, "fuse_max_seq_len": null, "modules_to_not_convert": ["lm_head"],
                       "backend": "autoawq"}),
                Replay {
                    format: Some(Format::AwqGemm),
                    bits: Some(4),
                    group_size: Some(columns(64)),
                    symmetric: Some(false),
                    ..Replay::default()
                },
            ),
        ] {
            assert_eq!(Replay::from_json(&file), Ok(expected), "{file}");
        }
    }

    #[test]
    fn settings_that_cannot_be_followed_are_refused_by_name() {
        for (file, expected) in [
            (json!([]), "the file is [], expected a JSON object"),
            (
                json!({"model_type": "llama"}),
                "quantization_config is missing",
            ),
            (
                json!({"version": "gemv"}),
                "version is \"gemv\", expected gemm",
            ),
            (
                json!({"quant_method": "bitsandbytes"}),
                "quantization method bitsandbytes is not supported",
            ),
            (
                json!({"lm_head": true}),
                "lm_head: true cannot be followed: the output head stays in float",
            ),
            (
                json!({"dynamic": {"-:x": {}}}),
                "dynamic: {\"-:x\":{}} cannot be followed",
            ),
            (
                json!({"modules_to_not_convert": ["gate"]}),
                "modules_to_not_convert: [\"gate\"] cannot be followed",
            ),
            (
                json!({"true_sequential": false}),
                "true_sequential: false cannot be followed",
            ),
            (json!({"mse": 2.4}), "mse: 2.4 cannot be followed"),
            (
                json!({"meta": {"foem": {"beta": 0.2}}}),
                "foem: {\"beta\":0.2} cannot be followed",
            ),
            (
                json!({"rotation": "hadamard"}),
                "rotation: \"hadamard\" cannot be followed: the key is not known",
            ),
            (
                json!({"damp_percent": "a lot"}),
                "damp_percent is \"a lot\", expected a number",
            ),
            (
                json!({"bits": 16}),
                "bits is 16, expected a whole number from 2 to 8",
            ),
            (
                json!({"sym": true, "zero_point": true}),
                "sym is true, but zero_point is true",
            ),
            (
                json!({"damp_percent": 0.1, "meta": {"damp_percent": 0.2}}),
                "damp_percent is 0.1, but damp_percent is 0.2",
            ),
        ] {
            let message = Replay::from_json(&file).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
