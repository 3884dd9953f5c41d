//! Jinja as transformers sets it up for chat templates: what they rely on beyond minijinja's own.
//!
//! Source: transformers' `utils/chat_template_utils.py`, whose names and defaults these are.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::Value as Json;

/// The name under which [`environment`] keeps the template.
pub(super) const TEMPLATE: &str = "chat";

/// An environment that holds `template` as [`TEMPLATE`].
pub(super) fn environment(template: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    // Methods of Python's strings, lists and dictionaries.
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", |format: String| strftime(&format));
    environment.add_filter("tojson", tojson);
    environment.add_template_owned(TEMPLATE, without_generation_tags(template))?;
    Ok(environment)
}

/// The date of every rendering, since the same run must give the same bytes tomorrow: Friday, 26 July 2024, noon. It is
/// what Llama 3.1's template writes where it is told no date.
fn strftime(format: &str) -> Result<String, Error> {
    let mut date = String::new();
    let mut rest = format.chars();
    while let Some(char) = rest.next() {
        if char != '%' {
            date.push(char);
            continue;
        }
        let mut directive = rest.next();
        // `%-d` is `%d` without leading zeros; the numbers that have any here are spelled out below.
        let bare = directive == Some('-');
        if bare {
            directive = rest.next();
        }
        date.push_str(match directive {
            Some('a') => "Fri",
            Some('A') => "Friday",
            Some('b' | 'h') => "Jul",
            Some('B') => "July",
            Some('m') if bare => "7",
            Some('m') => "07",
            Some('d' | 'e') => "26",
            Some('y') => "24",
            Some('Y') => "2024",
            Some('H' | 'I') => "12",
            Some('M' | 'S') if bare => "0",
            Some('M' | 'S') => "00",
            Some('p') => "PM",
            Some('j') => "208",
            Some('w' | 'u') => "5",
            Some('F') => "2024-07-26",
            Some('T' | 'X') => "12:00:00",
            Some('D' | 'x') => "07/26/24",
            Some('c') => "Fri Jul 26 12:00:00 2024",
            Some('%') => "%",
            Some('Z' | 'z') => "",
            _ => {
                let reason = format!("strftime_now: {format:?} has a directive that is not known");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        });
    }
    Ok(date)
}

/// Python's `json.dumps`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja gives arguments so"
)]
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))?;
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> =
        match options.get::<Option<Vec<String>>>("separators")? {
            Some(pair) => <[String; 2]>::try_from(pair).ok().map(Into::into),
            None => None,
        };
    let item = if indent.is_some() { "," } else { ", " };
    let writer = JsonWriter {
        indent,
        separators: separators.unwrap_or_else(|| (item.into(), ": ".into())),
        ensure_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut text = String::new();
    writer.write(&json, 0, &mut text);
    Ok(text)
}

struct JsonWriter {
    indent: Option<usize>,
    separators: (String, String),
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonWriter {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::String(text) => self.string(text, out),
            Json::Array(items) => {
                self.list(('[', ']'), items.iter(), depth, out, |item, out| {
                    self.write(item, depth + 1, out);
                });
            }
            Json::Object(map) => {
                let mut entries: Vec<(&String, &Json)> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|entry| entry.0);
                }
                self.list(
                    ('{', '}'),
                    entries.into_iter(),
                    depth,
                    out,
                    |(key, value), out| {
                        self.string(key, out);
                        out.push_str(&self.separators.1);
                        self.write(value, depth + 1, out);
                    },
                );
            }
            scalar => out.push_str(&scalar.to_string()),
        }
    }

    fn list<T>(
        &self,
        brackets: (char, char),
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        let newline = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.push_str(&" ".repeat(indent * depth));
            }
        };
        let any = items.len() > 0;
        out.push(brackets.0);
        for (index, item) in items.enumerate() {
            if index > 0 {
                out.push_str(&self.separators.0);
            }
            newline(depth + 1, out);
            write(item, out);
        }
        if any {
            newline(depth, out);
        }
        out.push(brackets.1);
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = Json::String(text.to_owned()).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for char in quoted.chars() {
            if char.is_ascii() {
                out.push(char);
            } else {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let escape = format!("\\u{unit:04x}");
                    out.push_str(&escape);
                }
            }
        }
    }
}

/// `template` with its `{% generation %}` tags, which mark what an assistant said and write nothing, as tags of a scope.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let (before, tag) = (&rest[..start], &rest[start + 2..start + len]);
        let name = tag.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => name,
        };
        out.push_str(before);
        out.push_str("{%");
        out.push_str(&tag.replacen(name, replacement, 1));
        rest = &rest[start + len..];
    }
    out + rest
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn render(template: &str) -> Result<String, Error> {
        environment(template)?.get_template(TEMPLATE)?.render(())
    }

    #[test]
    fn generation_tags_write_nothing() {
        let template = "a\n  {%- generation -%}  b {% endgeneration %}\nc{% if true %}{% generation %}d{%endgeneration%}{% endif %}";
        assert_eq!(render(template).unwrap(), "ab c\nd".replace("c\n", "c"));
        assert_eq!(without_generation_tags("a {% b"), "a {% b");
    }

    #[test]
    fn dates_do_not_change() {
        let date = render("{{ strftime_now('%d %b %Y, %A %-m/%y 100%%') }}").unwrap();
        assert_eq!(date, "26 Jul 2024, Friday 7/24 100%");
        let error = render("\n{{ strftime_now('%Q') }}").unwrap_err();
        assert_eq!(error.line(), Some(2));
    }

    #[test]
    fn json_is_python_s() {
        let template = |options: &str| {
            format!(
                "{{{{ {{'b': [1, 'é\\n'], 'a': {{}}, 'c': [none, true, 1.5]}} | tojson{options} }}}}"
            )
        };
        for (options, expected) in [
            ("", r#"{"b": [1, "é\n"], "a": {}, "c": [null, true, 1.5]}"#),
            (
                "(ensure_ascii=true, sort_keys=true)",
                r#"{"a": {}, "b": [1, "\u00e9\n"], "c": [null, true, 1.5]}"#,
            ),
            (
                "(separators=(',', ':'))",
                r#"{"b":[1,"é\n"],"a":{},"c":[null,true,1.5]}"#,
            ),
            (
                "(indent=2)",
                "{\n  \"b\": [\n    1,\n    \"é\\n\"\n  ],\n  \"a\": {},\n  \"c\": [\n    null,\n    true,\n    1.5\n  ]\n}",
            ),
        ] {
            assert_eq!(render(&template(options)).unwrap(), expected);
        }
        assert!(render(&template("(index=3)")).is_err());
    }
}
