//! Reading the settings of a quantized model under the names that AutoAWQ, AutoGPTQ, GPTQModel and transformers give them.

use serde_json::{Map, Value};

use super::{Error, Format};
use crate::quant::GroupSize;

/// Names of one setting in different programs.
pub(super) type Names = &'static [&'static str];

pub(super) const BITS: Names = &["bits", "w_bit", "wbits"];
pub(super) const GROUP_SIZE: Names = &["group_size", "q_group_size"];
pub(super) const METHOD: Names = &["quant_method", "method"];
pub(super) const SYMMETRIC: Names = &["sym"];
pub(super) const ASYMMETRIC: Names = &["zero_point"];
pub(super) const DESC_ACT: Names = &["desc_act"];
/// GPTQ's names for the layout; AutoAWQ calls it `version`.
pub(super) const LAYOUT: Names = &["checkpoint_format", "format", "version"];

/// The settings of one configuration object, with `meta`, where GPTQModel keeps some of them, behind it.
pub(super) struct Fields<'a> {
    pub top: &'a Map<String, Value>,
    meta: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    pub fn new(top: &'a Map<String, Value>) -> Self {
        let meta = top.get("meta").and_then(Value::as_object);
        Self { top, meta }
    }

    /// The value under any of `names`; null is the same as absent, and two names must not contradict each other.
    pub fn find(&self, names: Names) -> Result<Option<(&'static str, &'a Value)>, Error> {
        let present = |map: &'a Map<String, Value>| {
            names.iter().filter_map(move |&name| {
                let value = map.get(name)?;
                (!value.is_null()).then_some((name, value))
            })
        };
        let mut found = present(self.top).chain(self.meta.into_iter().flat_map(present));
        let Some((first, value)) = found.next() else {
            return Ok(None);
        };
        match found.find(|(_, other)| *other != value) {
            Some((second, other)) => Err(Error::Contradiction {
                first: first.to_owned(),
                first_value: value.to_string(),
                second: second.to_owned(),
                second_value: other.to_string(),
            }),
            None => Ok(Some((first, value))),
        }
    }

    fn read<T>(
        &self,
        names: Names,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some((key, value)) = self.find(names)? else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| Error::Setting {
            key: key.to_owned(),
            value: value.to_string(),
            expected: expected.to_owned(),
        })
    }

    pub fn flag(&self, names: Names) -> Result<Option<bool>, Error> {
        self.read(names, "true or false", Value::as_bool)
    }

    pub fn number(&self, names: Names) -> Result<Option<f64>, Error> {
        self.read(names, "a number", Value::as_f64)
    }

    pub fn bits(&self) -> Result<Option<u8>, Error> {
        self.read(BITS, "a whole number from 2 to 8", |value| {
            let bits = u8::try_from(value.as_u64()?).ok()?;
            (2..=8).contains(&bits).then_some(bits)
        })
    }

    pub fn group_size(&self) -> Result<Option<GroupSize>, Error> {
        self.read(
            GROUP_SIZE,
            "a positive whole number, or -1 for whole rows",
            |value| match value.as_i64()? {
                -1 => Some(GroupSize::WholeRow),
                columns => (columns > 0).then_some(GroupSize::Columns(columns as usize)),
            },
        )
    }

    pub fn symmetric(&self) -> Result<Option<bool>, Error> {
        let symmetric = self.flag(SYMMETRIC)?;
        match self.flag(ASYMMETRIC)? {
            Some(zero_point) if symmetric == Some(zero_point) => Err(Error::Contradiction {
                first: "sym".to_owned(),
                first_value: zero_point.to_string(),
                second: "zero_point".to_owned(),
                second_value: zero_point.to_string(),
            }),
            Some(zero_point) => Ok(Some(!zero_point)),
            None => Ok(symmetric),
        }
    }

    /// The layout, from its method and version; `None` if neither is named nor follows from other keys.
    pub fn format(&self) -> Result<Option<Format>, Error> {
        let lowercase = |value: &Value| value.as_str().map(str::to_lowercase);
        let layout = self.read(LAYOUT, "a name", lowercase)?;
        let has = |keys: &[&str]| keys.iter().any(|&key| self.top.contains_key(key));
        let method = match self.read(METHOD, "a name", lowercase)? {
            Some(method) => method,
            None if has(&["w_bit", "q_group_size", "version", "zero_point"]) => "awq".to_owned(),
            None if layout.is_some() || has(&["desc_act", "sym"]) => "gptq".to_owned(),
            None => return Ok(None),
        };
        let expected = match (method.as_str(), layout.as_deref()) {
            ("awq", None | Some("gemm")) => return Ok(Some(Format::AwqGemm)),
            ("gptq", None | Some("gptq")) => return Ok(Some(Format::GptqV1)),
            ("gptq", Some("gptq_v2")) => return Ok(Some(Format::GptqV2)),
            ("awq", _) => "gemm",
            ("gptq", _) => "gptq or gptq_v2",
            _ => return Err(Error::Method { method }),
        };
        let (key, value) = self.find(LAYOUT)?.expect("a layout was read above");
        Err(Error::Setting {
            key: key.to_owned(),
            value: value.to_string(),
            expected: expected.to_owned(),
        })
    }
}

/// The quantization settings inside a whole `config.json`, if it has any.
pub(super) fn inside_model_config(config: &Value) -> Option<&Map<String, Value>> {
    [config, &config["text_config"]]
        .into_iter()
        .find_map(|config| config["quantization_config"].as_object())
}

/// How the configuration files write a group size.
pub(super) fn group_size_number(group_size: GroupSize) -> i64 {
    match group_size {
        GroupSize::Columns(columns) => columns as i64,
        GroupSize::WholeRow => -1,
    }
}
