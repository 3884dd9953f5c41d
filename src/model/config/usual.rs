//! A family's configuration in the words of this crate.

use crate::model::arch::Architecture;
use crate::model::keys::filled;
use serde_json::Value;

/// A family's `config.json` with the names that this crate reads: aliases under their usual names, values that the family
/// takes for others replaced, and what transformers gives to absent keys (not to null ones) filled in.
pub(super) fn usual(json: &Value, arch: &Architecture) -> Value {
    let mut config = json.clone();
    let Some(object) = config.as_object_mut() else {
        return config;
    };
    for (key, alias) in arch.aliases {
        let mut path = alias.split('.');
        let first = path.next().and_then(|key| object.get(key));
        if let Some(value) = path.fold(first, |value, key| value?.get(key)).cloned() {
            object.insert((*key).to_owned(), value);
        }
    }
    for (key, found, meant) in arch.synonyms {
        if object.get(*key).and_then(Value::as_str) == Some(found) {
            object.insert((*key).to_owned(), Value::from(*meant));
        }
    }
    filled(&config, arch.defaults)
}
