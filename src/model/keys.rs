//! Typed access to `config.json` whose errors name the key, what it holds and what it should.

use super::Error;
use serde_json::Value;

/// `json` with `defaults`, as JSON, for keys that are absent (not for null ones).
pub(super) fn filled(json: &Value, defaults: &[(&str, &str)]) -> Value {
    let mut config = json.clone();
    if let Some(object) = config.as_object_mut() {
        for (key, value) in defaults {
            let value = || serde_json::from_str(value).expect("defaults of a row are JSON");
            object.entry(*key).or_insert_with(value);
        }
    }
    config
}

/// Typed access to a JSON object whose errors name the key.
pub(super) struct Keys<'a> {
    pub json: &'a Value,
    /// The key of this object in the file; empty for the file itself.
    pub path: &'a str,
}

impl<'a> Keys<'a> {
    /// The value, where there is one that is not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        self.get(key)
            .map(|value| read(value).ok_or_else(|| self.invalid(key, expected)))
            .transpose()
    }

    /// A count; a list of equal ones, as some families have for their layers, stands for one.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, Error> {
        // No model comes near, and no product of two overflows.
        const LIMIT: u64 = 1 << 24;
        self.typed(key, "a whole number below 2^24", |value| {
            let first = value.as_array().and_then(|list| {
                let first = list.first()?;
                list.iter().all(|other| other == first).then_some(first)
            });
            first
                .unwrap_or(value)
                .as_u64()
                .filter(|&number| number < LIMIT)
                .map(|number| number as usize)
        })
    }

    /// A count that must be there and above 0.
    pub fn size(&self, key: &'static str) -> Result<usize, Error> {
        match self.usize(key)? {
            Some(0) => Err(self.invalid(key, "at least 1")),
            Some(size) => Ok(size),
            None => Err(Error::Missing { key }),
        }
    }

    pub fn window(&self) -> Result<Option<usize>, Error> {
        self.length("sliding_window")
    }

    /// A count above 0, where there is one.
    pub fn length(&self, key: &str) -> Result<Option<usize>, Error> {
        match self.usize(key)? {
            Some(0) => Err(self.invalid(key, "at least 1, or null")),
            length => Ok(length),
        }
    }

    pub fn f64(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a number above 0", |value| {
            value.as_f64().filter(|&number| number > 0.0)
        })
    }

    /// Numbers above 0.
    pub fn positives(&self, key: &str) -> Result<Option<Vec<f64>>, Error> {
        self.typed(key, "a list of numbers above 0", |value| {
            let numbers = value.as_array()?.iter().map(Value::as_f64);
            let numbers = numbers.collect::<Option<Vec<_>>>()?;
            numbers
                .iter()
                .all(|&number| number > 0.0)
                .then_some(numbers)
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn str(&self, key: &str) -> Result<Option<&'a str>, Error> {
        self.typed(key, "a string", Value::as_str)
    }

    /// Refuses a value that is none of these JSON literals; an absent key is as good as any.
    pub fn require(&self, key: &str, accepted: &[&str]) -> Result<(), Error> {
        let accepts = |value: &Value| {
            let text = value.to_string();
            let number = value.as_f64();
            accepted.iter().any(|&literal| {
                text == literal || number.is_some_and(|number| literal.parse() == Ok(number))
            })
        };
        match self.get(key) {
            Some(value) if !accepts(value) => Err(self.unsupported(key, &accepted.join(", "))),
            _ => Ok(()),
        }
    }

    /// The key in the file.
    pub fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn found(&self, key: &str) -> String {
        self.json
            .get(key)
            .map_or_else(|| "absent".to_owned(), Value::to_string)
    }

    pub fn missing(&self, key: &str) -> Error {
        self.invalid(key, "a number")
    }

    pub fn invalid(&self, key: &str, expected: impl Into<String>) -> Error {
        Error::Invalid {
            key: self.name(key),
            found: self.found(key),
            expected: expected.into(),
        }
    }

    pub fn unsupported(&self, key: &str, supported: &str) -> Error {
        Error::Unsupported {
            key: self.name(key),
            found: self.found(key),
            supported: supported.to_owned(),
        }
    }
}
