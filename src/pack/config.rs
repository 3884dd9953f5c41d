//! The JSON that tells a loader how a model is quantized: written for our models, read from anyone's.
//!
//! Keys as AutoAWQ 0.2.9 (`AwqConfig.to_transformers_dict`) and GPTQModel 7.7.0 (`QuantizeConfig.to_dict`) write them, so
//! that vLLM 0.32 and transformers 5.23 find what they ask for.

use serde_json::{Map, Value, json};

use super::fields::{Fields, group_size_number, inside_model_config};
use super::float::Float;
use super::{Error, Format};
use crate::quant::Scheme;

/// What the configuration files say of a model that we quantized.
#[derive(Debug, Clone)]
pub struct Description<'a> {
    pub format: Format,
    pub scheme: Scheme,
    /// How GPTQ chose the codes, if it did. AWQ's configuration has no place for it.
    pub gptq: Option<GptqDetails>,
    pub float: Float<'a>,
    /// Full name of the output head, which stays in float too.
    pub head: &'a str,
    /// Names inside a block of the linear layers that are quantized (`self_attn.q_proj`). GPTQ readers convert every
    /// linear of a block unless told these; written where some linear stays in float, or where vLLM has other names.
    pub quantized_in_block: &'a [String],
    /// Names inside a block that vLLM has for some of these, as the family's entry says.
    pub named_by_vllm: &'a [&'a str],
    /// Where the blocks are (`model.text_model.layers`), in a model with more than a decoder.
    pub blocks: Option<&'a str>,
}

/// How files name the blocks that transformers finds with GPTQ by itself (optimum 2.3, `gptq/constants.py`), by other names in
/// its memory.
const FOUND: &[&str] = &[
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
];

/// The settings of the GPTQ solver, recorded for people; `desc_act` alone matters to a loader.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqDetails {
    /// Fraction of the Gram matrix' mean diagonal that was added to its diagonal.
    pub damp_percent: f64,
    /// Columns were grouped in the order in which they were quantized: `g_idx` is needed.
    pub desc_act: bool,
    /// Grids were fixed before the first column was quantized.
    pub static_groups: bool,
    /// Columns were ordered inside their groups, and groups as wholes; readers do not take it beside `desc_act`.
    pub act_group_aware: bool,
}

impl Description<'_> {
    /// `quantization_config` of `config.json`, and the whole of `quantize_config.json`.
    pub fn quantization_config(&self) -> Value {
        match self.format {
            Format::AwqGemm => self.awq(),
            Format::GptqV1 => self.gptq("gptq"),
            Format::GptqV2 => self.gptq("gptq_v2"),
        }
    }

    fn awq(&self) -> Value {
        // An explicit list: null has vLLM look into the files for what is quantized, and that search takes a name for
        // every other that contains it.
        let mut dense = self.float.names();
        dense.push(self.head.to_owned());
        let mut config = json!({
            "quant_method": "awq",
            "bits": self.scheme.bits,
            "group_size": group_size_number(self.scheme.group_size),
            // Zero points are stored either way, and vLLM's fast kernels take files without them only under other names.
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": dense,
        });
        // GPTQModel does not read that list: with AWQ too it goes by its own one of a family's linears, and by these.
        if !self.float.projections.is_empty() {
            config["dynamic"] = self.float.projection_rules();
        }
        config
    }

    fn gptq(&self, checkpoint_format: &str) -> Value {
        let details = self.gptq;
        let mut config = json!({
            "quant_method": "gptq",
            "method": "gptq",
            "format": checkpoint_format,
            "checkpoint_format": checkpoint_format,
            "bits": self.scheme.bits,
            "group_size": group_size_number(self.scheme.group_size),
            "desc_act": details.is_some_and(|details| details.desc_act),
            "sym": self.scheme.symmetric,
            "lm_head": false,
            "pack_dtype": "int32",
            "dynamic": self.float.rules(),
            "true_sequential": true,
            "meta": {
                "quantizer": [concat!("nibble:", env!("CARGO_PKG_VERSION"))],
                "true_sequential": true,
            },
        });
        if let Some(details) = details {
            // At the top for AutoGPTQ and transformers, in `meta` for GPTQModel.
            config["damp_percent"] = json!(details.damp_percent);
            config["static_groups"] = json!(details.static_groups);
            config["meta"]["damp_percent"] = json!(details.damp_percent);
            config["meta"]["static_groups"] = json!(details.static_groups);
            config["meta"]["act_group_aware"] = json!(details.act_group_aware && !details.desc_act);
        }
        if !self.float.is_empty() || !self.named_by_vllm.is_empty() {
            let stored = self.quantized_in_block.iter().map(String::as_str);
            let names: Vec<&str> = stored.chain(self.named_by_vllm.iter().copied()).collect();
            config["modules_in_block_to_quantize"] = json!([names]);
        }
        if let Some(blocks) = self.blocks.filter(|blocks| !FOUND.contains(blocks)) {
            config["block_name_to_quantize"] = json!(blocks);
        }
        config
    }
}

/// `config` for the quantized model: every key in its place, `quantization_config` set, and the dtype float16, in which
/// the scales are stored. `architecture` is named where the model's own config names none.
pub fn edit_config(config: &Value, quantization: Value, architecture: &str) -> Value {
    let mut edited = config.as_object().cloned().unwrap_or_default();
    if !set_dtype(&mut edited) {
        edited.insert("torch_dtype".to_owned(), json!("float16"));
    }
    if let Some(Value::Object(text_config)) = edited.get_mut("text_config") {
        set_dtype(text_config);
    }
    if edited
        .get("architectures")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        edited.insert("architectures".to_owned(), json!([architecture]));
    }
    edited.insert("quantization_config".to_owned(), quantization);
    Value::Object(edited)
}

/// Sets the dtype under the names that are there (transformers 4 wrote `torch_dtype`, 5 writes `dtype`); false if none is.
fn set_dtype(config: &mut Map<String, Value>) -> bool {
    let mut found = false;
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = config.get_mut(key) {
            *dtype = json!("float16");
            found = true;
        }
    }
    found
}

/// How the tensors of a quantized model directory are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizedFormat {
    pub format: Format,
    pub scheme: Scheme,
}

impl QuantizedFormat {
    /// What a model's `config.json` says; `None` for a model that is not quantized.
    ///
    /// # Errors
    /// Anything other than AWQ "gemm" at 4 bits and GPTQ at 2, 3, 4 or 8 bits with one scheme for all layers.
    pub fn from_model_config(config: &Value) -> Result<Option<Self>, Error> {
        let Some(settings) = inside_model_config(config) else {
            return Ok(None);
        };
        // What models are published in, and dequantized as they are read.
        if settings.get("quant_method").and_then(Value::as_str) == Some("mxfp4") {
            return Ok(None);
        }
        let fields = Fields::new(settings);
        let format = fields.format()?.ok_or(Error::MissingKey {
            key: "quant_method",
        })?;
        let bits = fields.bits()?.ok_or(Error::MissingKey { key: "bits" })?;
        let allowed: &[u8] = match format {
            Format::AwqGemm => &[4],
            Format::GptqV1 | Format::GptqV2 => &[2, 3, 4, 8],
        };
        let refused = |key: &str, value: &dyn ToString, expected: &str| Error::Setting {
            key: key.to_owned(),
            value: value.to_string(),
            expected: expected.to_owned(),
        };
        if !allowed.contains(&bits) {
            let expected = format!("one of {allowed:?} for {}", format.method());
            return Err(refused("bits", &bits, &expected));
        }
        if let Some((key, value)) = fields.find(&["pack_dtype"])?
            && value != "int32"
        {
            return Err(refused(key, value, "int32"));
        }
        if fields.flag(&["is_marlin_format"])? == Some(true) {
            return Err(refused("is_marlin_format", &true, "false"));
        }
        let skips_only =
            |rules: &Map<String, Value>| rules.keys().all(|rule| rule.starts_with("-:"));
        if let Some((key, value)) = fields.find(&["dynamic"])?
            && !value.as_object().is_some_and(skips_only)
        {
            return Err(refused(key, value, "rules that skip layers (-:) only"));
        }
        let symmetric = fields.symmetric()?.unwrap_or(format != Format::AwqGemm);
        Ok(Some(Self {
            format,
            scheme: Scheme {
                bits,
                group_size: fields
                    .group_size()?
                    .ok_or(Error::MissingKey { key: "group_size" })?,
                symmetric,
                min_zero_point: format.min_zero_point(symmetric),
            },
        }))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::pack::Family;
    use crate::quant::GroupSize;

    fn description(format: Format, bits: u8, symmetric: bool) -> Description<'static> {
        Description {
            format,
            scheme: Scheme {
                bits,
                group_size: GroupSize::Columns(128),
                symmetric,
                min_zero_point: format.min_zero_point(symmetric),
            },
            gptq: None,
            float: Float::default(),
            head: "lm_head",
            quantized_in_block: &[],
            named_by_vllm: &[],
            blocks: None,
        }
    }

    #[test]
    fn awq_is_described_as_autoawq_does() {
        let expected = json!({
            "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        });
        let config = description(Format::AwqGemm, 4, false).quantization_config();
        assert_eq!(config.to_string(), expected.to_string());
        // Without a zero point vLLM drops to slow kernels; the tensors are the same.
        let symmetric = description(Format::AwqGemm, 4, true).quantization_config();
        assert_eq!(symmetric, expected);
    }

    #[test]
    fn gptq_is_described_for_every_generation_of_readers() {
        let details = GptqDetails {
            damp_percent: 0.05,
            desc_act: false,
            static_groups: false,
            act_group_aware: true,
        };
        let config = Description {
            gptq: Some(details),
            ..description(Format::GptqV1, 8, true)
        }
        .quantization_config();
        let expected = json!({
            "quant_method": "gptq", "method": "gptq", "format": "gptq", "checkpoint_format": "gptq",
            "bits": 8, "group_size": 128, "desc_act": false, "sym": true, "lm_head": false,
            "pack_dtype": "int32", "dynamic": {}, "true_sequential": true,
            "meta": {
                "quantizer": [format!("nibble:{}", env!("CARGO_PKG_VERSION"))],
                "true_sequential": true, "damp_percent": 0.05, "static_groups": false, "act_group_aware": true,
            },
            "damp_percent": 0.05, "static_groups": false,
        });
        assert_eq!(config, expected);
        // GPTQModel refuses a config that claims both orders.
        let both = Description {
            gptq: Some(GptqDetails {
                desc_act: true,
                ..details
            }),
            ..description(Format::GptqV2, 4, false)
        }
        .quantization_config();
        assert_eq!(both["desc_act"], json!(true));
        assert_eq!(both["meta"]["act_group_aware"], json!(false));
        assert_eq!(both["checkpoint_format"], json!("gptq_v2"));
    }

    #[test]
    fn linears_that_stay_in_float_are_excluded_for_every_reader() {
        let dense = ["model.layers.0.mlp.gate".to_owned()];
        let quantized = ["self_attn.q_proj".to_owned()];
        let describe = |format| {
            Description {
                float: Float {
                    linears: &dense,
                    ..Float::default()
                },
                quantized_in_block: &quantized,
                ..description(format, 4, true)
            }
            .quantization_config()
        };
        assert_eq!(
            describe(Format::AwqGemm)["modules_to_not_convert"],
            json!(["model.layers.0.mlp.gate", "lm_head"])
        );
        let gptq = describe(Format::GptqV1);
        assert_eq!(
            gptq["dynamic"],
            json!({ r"-:^(model\.)?layers\.0\.mlp\.gate$": {} })
        );
        assert_eq!(
            gptq["modules_in_block_to_quantize"],
            json!([["self_attn.q_proj"]])
        );
        // A router is in no reader's list of what is quantized; a projection is, and AWQ's list is not GPTQModel's.
        assert_eq!(describe(Format::AwqGemm)["dynamic"], Value::Null);
        let projections = Description {
            float: Float {
                linears: &dense,
                projections: &dense,
                ..Float::default()
            },
            ..description(Format::AwqGemm, 4, false)
        };
        assert_eq!(
            projections.quantization_config()["dynamic"],
            gptq["dynamic"]
        );
    }

    /// vLLM 0.32, `layers/quantization/utils/gptq_utils.py`: a linear of its own model is quantized if its name contains one of
    /// the list; that of one which its class calls fused, if the names of its parts do.
    #[test]
    fn vllm_finds_its_own_names_in_the_list() {
        const LLAMA: &[&str] = &[
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ];
        const GATED: &[&str] = &["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        const GPTJ: &[&str] = &[
            "attn.q_proj",
            "attn.k_proj",
            "attn.v_proj",
            "attn.out_proj",
            "mlp.fc_in",
            "mlp.fc_out",
        ];
        const MAMBA: &[&str] = &["mamba.in_proj", "mamba.out_proj"];
        const LATENT: &[&str] = &[
            "self_attn.q_a_proj",
            "self_attn.q_b_proj",
            "self_attn.kv_a_proj_with_mqa",
            "self_attn.kv_b_proj",
            "self_attn.o_proj",
        ];
        // How the linears are stored, and what vLLM looks for.
        type Names = &'static [&'static str];
        let families: [(&str, &[Names], Names); 5] = [
            (
                "gptj",
                &[GPTJ],
                &[
                    "transformer.h.0.attn.qkv_proj",
                    "transformer.h.0.attn.out_proj",
                    "transformer.h.0.mlp.fc_in",
                    "transformer.h.0.mlp.fc_out",
                ],
            ),
            (
                "stablelm",
                &[LLAMA, GATED],
                &[
                    "model.layers.0.self_attn.qkv_proj",
                    "model.layers.0.self_attn.o_proj",
                    "model.layers.0.mlp.gate_up_proj",
                    "model.layers.0.mlp.down_proj",
                ],
            ),
            (
                "falcon_h1",
                &[LLAMA, MAMBA],
                &[
                    "model.layers.0.q_proj",
                    "model.layers.0.k_proj",
                    "model.layers.0.v_proj",
                    "model.layers.0.o_proj",
                    "model.36.mixer.in_proj",
                    "model.36.mixer.out_proj",
                ],
            ),
            (
                "granitemoehybrid",
                &[LLAMA, MAMBA],
                &[
                    "model.layers.5.self_attn.q_proj",
                    "model.layers.0.mixer.in_proj",
                    "model.layers.0.mixer.out_proj",
                ],
            ),
            // The first of them has no name in vLLM.
            (
                "minicpm3",
                &[LATENT, GATED],
                &["", "model.layers.0.self_attn.q_b_proj"],
            ),
        ];
        for (model_type, stored, expected) in families {
            let stored = stored.concat().into_iter().map(str::to_owned);
            let config = Description {
                quantized_in_block: &stored.collect::<Vec<_>>(),
                named_by_vllm: Family::find(model_type).unwrap().named_by_vllm,
                ..description(Format::GptqV1, 4, true)
            }
            .quantization_config();
            let list = config["modules_in_block_to_quantize"][0]
                .as_array()
                .unwrap();
            for name in expected {
                let found = (list.iter()).any(|part| name.contains(part.as_str().unwrap()));
                assert!(found, "{model_type}: {name} in {list:?}");
            }
        }
        // Where its names are those of the files it needs no list, and gets none.
        let plain = description(Format::GptqV1, 4, true).quantization_config();
        assert_eq!(plain["modules_in_block_to_quantize"], Value::Null);
    }

    #[test]
    fn editing_keeps_every_key_in_its_place() {
        let edit = |config: &str| {
            let config = serde_json::from_str(config).unwrap();
            edit_config(&config, json!({"bits": 4}), "NewForCausalLM").to_string()
        };
        for (config, expected) in [
            (
                r#"{"z":1,"architectures":["AForCausalLM"],"torch_dtype":"bfloat16","a":[2]}"#,
                r#"{"z":1,"architectures":["AForCausalLM"],"torch_dtype":"float16","a":[2],"quantization_config":{"bits":4}}"#,
            ),
            (
                r#"{"dtype":"float32","text_config":{"dtype":"bfloat16","b":1},"quantization_config":null,"b":0.1}"#,
                r#"{"dtype":"float16","text_config":{"dtype":"float16","b":1},"quantization_config":{"bits":4},"b":0.1,"architectures":["NewForCausalLM"]}"#,
            ),
            (
                r#"{"torch_dtype":null,"dtype":"bfloat16","architectures":[]}"#,
                r#"{"torch_dtype":"float16","dtype":"float16","architectures":["NewForCausalLM"],"quantization_config":{"bits":4}}"#,
            ),
            (
                r#"{"text_config":{"a":1}}"#,
                r#"{"text_config":{"a":1},"torch_dtype":"float16","architectures":["NewForCausalLM"],"quantization_config":{"bits":4}}"#,
            ),
        ] {
            assert_eq!(edit(config), expected);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for (format, bits, symmetric) in [
            (Format::AwqGemm, 4, false),
            (Format::GptqV1, 8, true),
            (Format::GptqV1, 2, false),
            (Format::GptqV2, 3, false),
        ] {
            let description = description(format, bits, symmetric);
            let config = edit_config(
                &json!({"model_type": "llama"}),
                description.quantization_config(),
                "A",
            );
            let expected = QuantizedFormat {
                format,
                scheme: description.scheme,
            };
            assert_eq!(
                QuantizedFormat::from_model_config(&config),
                Ok(Some(expected))
            );
        }
        assert_eq!(
            QuantizedFormat::from_model_config(&json!({"model_type": "llama"})),
            Ok(None)
        );
    }

    #[test]
    fn other_writers_spellings_are_read() {
        let read = |quantization: Value| {
            let config = json!({ "text_config": { "quantization_config": quantization } });
            let read = QuantizedFormat::from_model_config(&config)?.unwrap();
            Ok((
                read.format,
                read.scheme.bits,
                read.scheme.group_size,
                read.scheme.symmetric,
            ))
        };
        let columns = GroupSize::Columns;
        for (config, expected) in [
            // AutoAWQ's own names
            (
                json!({"w_bit": 4, "q_group_size": 64, "zero_point": true, "version": "GEMM"}),
                (Format::AwqGemm, 4, columns(64), false),
            ),
            // transformers' AwqConfig
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": -1, "zero_point": true, "version": "gemm",
                       "format": "gemm", "backend": "auto", "modules_to_not_convert": ["visual"]}),
                (Format::AwqGemm, 4, GroupSize::WholeRow, false),
            ),
            // AutoGPTQ: no layout named
            (
                json!({"quant_method": "gptq", "bits": 3, "group_size": 128, "sym": false, "desc_act": true,
                       "damp_percent": 0.01, "is_marlin_format": false, "model_file_base_name": null}),
                (Format::GptqV1, 3, columns(128), false),
            ),
            // GPTQModel, with layers that stay in float
            (
                json!({"method": "gptq", "bits": 8, "group_size": 32, "sym": true, "desc_act": false,
                       "checkpoint_format": "gptq_v2", "format": "gptq_v2", "pack_dtype": "int32",
                       "dynamic": {"-:.*gate$": {}}, "meta": {"quantizer": ["gptqmodel:7.7.0"]}}),
                (Format::GptqV2, 8, columns(32), true),
            ),
        ] {
            assert_eq!(read(config), Ok::<_, Error>(expected));
        }
    }

    #[test]
    fn unreadable_models_are_refused_by_key() {
        for (config, expected) in [
            (
                json!({"quant_method": "fp8"}),
                "quantization method fp8 is not supported; expected awq or gptq",
            ),
            (
                json!({"quant_method": "awq", "version": "gemv", "bits": 4}),
                "version is \"gemv\", expected gemm",
            ),
            (
                json!({"quant_method": "gptq", "format": "marlin"}),
                "format is \"marlin\", expected gptq or gptq_v2",
            ),
            (
                json!({"quant_method": "awq", "bits": 8, "group_size": 128}),
                "bits is 8, expected one of [4] for awq",
            ),
            (
                json!({"quant_method": "gptq", "bits": 5, "group_size": 128}),
                "bits is 5, expected one of [2, 3, 4, 8] for gptq",
            ),
            (
                json!({"quant_method": "gptq", "group_size": 128}),
                "bits is missing",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4}),
                "group_size is missing",
            ),
            (
                json!({"bits": 4, "group_size": 128}),
                "quant_method is missing",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 0}),
                "group_size is 0, expected a positive whole number, or -1 for whole rows",
            ),
            (
                json!({"quant_method": "gptq", "bits": "4", "group_size": 1}),
                "bits is \"4\", expected a whole number from 2 to 8",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 1, "dynamic": {"+:q": {"bits": 8}}}),
                "dynamic is",
            ),
            (
                json!({"quant_method": "gptq", "bits": 4, "group_size": 1, "pack_dtype": "int16"}),
                "pack_dtype is \"int16\", expected int32",
            ),
            (
                json!({"bits": 4, "w_bit": 8, "group_size": 128, "version": "gemm"}),
                "bits is 4, but w_bit is 8; remove one of the two",
            ),
        ] {
            let config = json!({ "quantization_config": config });
            let message = QuantizedFormat::from_model_config(&config)
                .unwrap_err()
                .to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
