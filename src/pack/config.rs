//! The JSON that tells a loader how a model is quantized: written for our models, read from anyone's.
//!
//! Keys as AutoAWQ 0.2.9 (`AwqConfig.to_transformers_dict`) and GPTQModel 7.7.0 (`QuantizeConfig.to_dict`) write them, so
//! that vLLM 0.32 and transformers 5.23 find what they ask for.

use serde_json::{Map, Value, json};

use super::fields::{Fields, group_size_number, inside_model_config};
use super::{Error, Format};
use crate::quant::Scheme;

/// What the configuration files say of a model that we quantized.
#[derive(Debug, Clone)]
pub struct Description<'a> {
    pub format: Format,
    pub scheme: Scheme,
    /// How GPTQ chose the codes, if it did. AWQ's configuration has no place for it.
    pub gptq: Option<GptqDetails>,
    /// Full names of the linear layers in decoder blocks that stay in float, such as routers.
    pub dense_linears: &'a [String],
    /// Names inside a block of the linear layers that are quantized (`self_attn.q_proj`). GPTQ readers convert every
    /// linear of a block unless told these; written only where some linear stays in float.
    pub quantized_in_block: &'a [String],
}

/// The settings of the GPTQ solver, recorded for people; `desc_act` alone matters to a loader.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GptqDetails {
    /// Fraction of the Gram matrix' mean diagonal that was added to its diagonal.
    pub damp_percent: f64,
    /// Columns were grouped in the order in which they were quantized: `g_idx` is needed.
    pub desc_act: bool,
    /// Grids were fixed before the first column was quantized.
    pub static_groups: bool,
    /// Columns were ordered inside their groups, and groups as wholes.
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
        // null makes vLLM look into the files for what is quantized, and transformers skip the output head.
        let dense = match self.dense_linears {
            [] => Value::Null,
            names => json!(names),
        };
        json!({
            "quant_method": "awq",
            "bits": self.scheme.bits,
            "group_size": group_size_number(self.scheme.group_size),
            // Zero points are stored either way, and vLLM's fast kernels take files without them only under other names.
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": dense,
        })
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
            "dynamic": self.skip_rules(),
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
            config["meta"]["act_group_aware"] = json!(details.act_group_aware);
        }
        if !self.dense_linears.is_empty() {
            config["modules_in_block_to_quantize"] = json!([self.quantized_in_block]);
        }
        config
    }

    /// One rule for each linear that stays in float: a regular expression on its full name.
    fn skip_rules(&self) -> Value {
        let rules = self
            .dense_linears
            .iter()
            .map(|name| (format!("-:^{}$", name.replace('.', "\\.")), json!({})));
        Value::Object(rules.collect())
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
