//! The chat template of a model directory, and conversations as it writes them.

use std::path::{Path, PathBuf};

use minijinja::Environment;
use minijinja::value::{Serde, Value};
use serde_json::{Map, Value as Json, json};

use super::jinja::{TEMPLATE, environment};
use super::template_file::TemplateFile;
use super::{Conversation, Error, Message, Part};

/// A model's own template, with what it takes.
///
/// Templates differ in whether a turn's content is a string or a list of parts, and some have no system turn. Nothing
/// declares that, so each template is tried once: it takes what it writes out in full.
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    special_tokens: Map<String, Json>,
    /// How conversations of text are given.
    text: Contents,
    /// How conversations with images are given; none where the template writes nothing for an image.
    images: Option<Contents>,
}

/// What a turn's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Parts,
}

/// The form of each role's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Contents {
    /// None where the template refuses the role or leaves its text out.
    system: Option<Form>,
    user: Form,
    assistant: Form,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or else `chat_template.json`, or else `chat_template` of tokenizer_config.json: a
    /// string, or of a list the one that is named `default`. None where there is no such.
    ///
    /// # Errors
    /// [`Error::Template`] where it is no template, or writes no conversation in whatever form.
    pub fn open(model_dir: &Path) -> Result<Option<Self>, Error> {
        let Some(TemplateFile {
            path,
            source,
            special_tokens,
        }) = TemplateFile::find(model_dir)?
        else {
            return Ok(None);
        };
        let environment = environment(&source).map_err(|error| located(&path, &error))?;
        let nothing = Contents {
            system: None,
            user: Form::Text,
            assistant: Form::Text,
        };
        let mut template = Self {
            environment,
            path,
            special_tokens,
            text: nothing,
            images: None,
        };
        (template.text, template.images) = template.probe()?;
        Ok(Some(template))
    }

    /// A conversation as the model was taught to read it, special tokens written out, without the beginning of a next
    /// answer. Turns of nothing are left out.
    ///
    /// A template without a system turn gets that text at the head of the first user turn, a blank line after it.
    /// `placeholder` is what stands for an image: the template writes it, or where it writes none, a line of its own in
    /// the turn's text does. Without a placeholder images are left out.
    ///
    /// # Errors
    /// What the template refuses, with its line and the conversation's.
    pub fn render(
        &self,
        conversation: &Conversation,
        placeholder: Option<&str>,
    ) -> Result<String, Error> {
        let sees = placeholder.is_some() && conversation.images().next().is_some();
        let (contents, placeholder) = match self.images {
            Some(contents) if sees => (contents, None),
            _ => (self.text, placeholder),
        };
        let mut messages: Vec<Message> = (conversation.messages.iter())
            .map(|message| shown(message, sees, placeholder))
            .filter(|message| !message.parts.is_empty())
            .collect();
        if contents.system.is_none() {
            fold_system(&mut messages);
        }
        let messages = messages.iter().map(|message| {
            let form = match message.role.as_str() {
                "system" => contents.system.unwrap_or(contents.user),
                "assistant" => contents.assistant,
                _ => contents.user,
            };
            turn(&message.role, form, &message.parts)
        });
        self.run(messages.collect()).map_err(|error| {
            let reason = located(&self.path, &error);
            conversation.error(format!("the chat template cannot write this: {reason}"))
        })
    }

    fn run(&self, messages: Vec<Json>) -> Result<String, minijinja::Error> {
        let mut context = self.special_tokens.clone();
        context.insert("messages".into(), messages.into());
        context.insert("tools".into(), Json::Null);
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), false.into());
        let template = self.environment.get_template(TEMPLATE)?;
        template.render(Value::from(Serde(context)))
    }

    /// What the template takes for conversations of text, and for those with images.
    fn probe(&self) -> Result<(Contents, Option<Contents>), Error> {
        let writes = |turns: &[(&str, Form)]| -> Result<bool, minijinja::Error> {
            let messages = turns.iter().map(|(role, form)| probe_turn(role, *form));
            let written = self.run(messages.collect())?;
            let whole = turns
                .iter()
                .all(|(role, _)| written.contains(&probe_text(role)));
            Ok(whole && !written.contains(PROBE_KEY))
        };
        let contents = |user, assistant| -> Result<Option<Contents>, minijinja::Error> {
            if !writes(&[("user", user), ("assistant", assistant)])? {
                return Ok(None);
            }
            let takes = |form: &Form| {
                let turns = [("system", *form), ("user", user), ("assistant", assistant)];
                writes(&turns).unwrap_or(false)
            };
            let forms = if user == Form::Text {
                [Form::Text, Form::Parts]
            } else {
                [Form::Parts, Form::Text]
            };
            Ok(Some(Contents {
                system: forms.into_iter().find(takes),
                user,
                assistant,
            }))
        };
        let plain = contents(Form::Text, Form::Text);
        let rest = [
            (Form::Parts, Form::Parts),
            (Form::Text, Form::Parts),
            (Form::Parts, Form::Text),
        ];
        let taken = |(user, assistant)| contents(user, assistant).ok().flatten();
        let text = match plain {
            Ok(Some(plain)) => plain,
            ref refused => rest.into_iter().find_map(taken).ok_or_else(|| {
                refused.as_ref().map_or_else(
                    |error| located(&self.path, error),
                    |_| Error::Template {
                        path: self.path.clone(),
                        line: None,
                        reason: "the chat template leaves out what a user and an assistant say"
                            .into(),
                    },
                )
            })?,
        };
        let images = [rest[0], rest[2]].into_iter().filter_map(taken);
        let images = images
            .into_iter()
            .find(|contents| self.writes_images(*contents));
        Ok((text, images))
    }

    /// Whether an image part leaves a trace.
    fn writes_images(&self, contents: Contents) -> bool {
        let assistant = probe_turn("assistant", contents.assistant);
        let render = |parts: Json| {
            let user = json!({"role": "user", "content": parts});
            self.run(vec![user, assistant.clone()]).ok()
        };
        let text = json!({"type": "text", "text": probe_text("user")});
        let with = render(json!([{"type": "image"}, text]));
        with.is_some() && with != render(json!([text]))
    }
}

/// A key of a probe's parts that no template asks for: where it shows, the list itself was written.
const PROBE_KEY: &str = "nibble_probe_key";

fn probe_text(role: &str) -> String {
    format!("probe-of-{role}")
}

fn probe_turn(role: &str, form: Form) -> Json {
    let text = probe_text(role);
    match form {
        Form::Text => json!({"role": role, "content": text}),
        Form::Parts => {
            let part = json!({"type": "text", "text": text, PROBE_KEY: true});
            json!({"role": role, "content": [part]})
        }
    }
}

/// `message` with the parts that the template shall write.
fn shown(message: &Message, sees: bool, placeholder: Option<&str>) -> Message {
    let shown = |part: &Part| match part {
        Part::Text(text) => (!text.trim().is_empty()).then(|| Part::Text(text.clone())),
        Part::Image(_) if !sees => None,
        image @ Part::Image(_) => Some(match placeholder {
            Some(placeholder) => Part::Text(placeholder.to_owned()),
            None => image.clone(),
        }),
    };
    Message {
        role: message.role.clone(),
        parts: message.parts.iter().filter_map(shown).collect(),
    }
}

/// A message as templates know it.
fn turn(role: &str, form: Form, parts: &[Part]) -> Json {
    let content = match form {
        Form::Text => {
            let lines = parts.iter().filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Image(_) => None,
            });
            Json::String(lines.collect::<Vec<_>>().join("\n"))
        }
        Form::Parts => {
            let part = |part: &Part| match part {
                Part::Text(text) => json!({"type": "text", "text": text}),
                Part::Image(_) => json!({"type": "image"}),
            };
            parts.iter().map(part).collect()
        }
    };
    json!({"role": role, "content": content})
}

/// Makes the system turns at the head of a conversation the head of the first turn after them, or a user turn where
/// that is not a user's.
fn fold_system(messages: &mut Vec<Message>) {
    let n_system = messages.iter().take_while(|m| m.role == "system").count();
    if n_system == 0 {
        return;
    }
    let system: Vec<Message> = messages.drain(..n_system).collect();
    let system: Vec<String> = system.iter().map(|message| message.lines(None)).collect();
    let mut head = system.join("\n\n");
    let first = messages
        .first_mut()
        .filter(|message| message.role == "user");
    let Some(first) = first else {
        let parts = vec![Part::Text(head)];
        let role = "user".to_owned();
        messages.insert(0, Message { role, parts });
        return;
    };
    head.push_str("\n\n");
    if let Some(Part::Text(text)) = first.parts.first_mut() {
        text.insert_str(0, &head);
    } else {
        first.parts.insert(0, Part::Text(head));
    }
}

/// What went wrong in the template at `path`, and in which line of it.
fn located(path: &Path, error: &minijinja::Error) -> Error {
    // The innermost cause is what a macro or `raise_exception` said.
    let mut innermost = error;
    while let Some(cause) = std::error::Error::source(innermost)
        .and_then(|cause| cause.downcast_ref::<minijinja::Error>())
    {
        innermost = cause;
    }
    let kind = innermost.kind().to_string();
    let detail = innermost.detail().unwrap_or(&kind);
    let line = innermost.line().or_else(|| error.line());
    if path
        .extension()
        .is_some_and(|extension| extension == "jinja")
    {
        return Error::Template {
            path: path.to_path_buf(),
            line,
            reason: detail.to_owned(),
        };
    }
    Error::Template {
        path: path.to_path_buf(),
        line: None,
        reason: match line {
            Some(line) => format!("line {line} of `chat_template`: {detail}"),
            None => format!("`chat_template`: {detail}"),
        },
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use super::super::lines;
    use super::super::{Document, ImageSource, Images, Origin, load};
    use super::*;

    fn opened(template: &str, tokens: &Json) -> ChatTemplate {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        fs::write(
            folder.path().join("tokenizer_config.json"),
            tokens.to_string(),
        )
        .unwrap();
        ChatTemplate::open(folder.path()).unwrap().unwrap()
    }

    fn golden() -> Json {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let golden = fs::read_to_string(folder.join("chat.json")).unwrap();
        serde_json::from_str(&golden).unwrap()
    }

    /// The conversation of a line whose images are all the same.
    fn conversation(messages: &Json) -> Conversation {
        let n_images = messages.to_string().matches(r#""type":"image""#).count();
        let line = json!({"messages": messages, "images": vec!["x.png"; n_images]}).to_string();
        let origin = Origin {
            path: "x.jsonl".into(),
            line: Some(7),
        };
        let find = |place: &str| Ok(ImageSource::File(place.into()));
        match lines::parse(&line, origin, Some(&find)).unwrap() {
            Document::Messages(chat) => chat,
            Document::Text(_) => panic!("a text"),
        }
    }

    /// tests/golden/generate/chat.py, transformers 5.23.0.
    #[test]
    fn templates_write_what_transformers_writes() {
        let golden = golden();
        for case in golden["cases"].as_array().unwrap() {
            let template = case["template"].as_str().unwrap();
            let template = opened(template, &golden["special_tokens"]);
            for chat in case["conversations"].as_array().unwrap() {
                let name = format!("{} {}", case["name"], chat["name"]);
                let conversation = conversation(&chat["messages"]);
                let found = template.render(&conversation, case["placeholder"].as_str());
                if let Some(refused) = chat["refused"].as_str() {
                    let error = found.unwrap_err().to_string();
                    assert!(error.starts_with("x.jsonl:7: "), "{name}: {error}");
                    assert!(error.contains("chat_template.jinja:"), "{name}: {error}");
                    assert!(error.ends_with(refused), "{name}: {error}");
                } else {
                    let expected = chat["expected"].as_str().unwrap();
                    assert_eq!(found.unwrap(), expected, "{name}");
                }
            }
        }
    }

    #[test]
    fn every_template_writes_the_built_in_conversations() {
        let golden = golden();
        let documents = load(None, Images::Kept).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let template = case["template"].as_str().unwrap();
            let template = opened(template, &golden["special_tokens"]);
            let placeholder = case["placeholder"].as_str();
            for document in &documents {
                let Document::Messages(chat) = document else {
                    continue;
                };
                let written = template.render(chat, placeholder).unwrap();
                let expected = placeholder.map_or(0, |_| document.n_images());
                let found = placeholder.map_or(0, |text| written.matches(text).count());
                assert_eq!(found, expected, "{}", case["name"]);
            }
        }
    }

    #[test]
    fn without_a_placeholder_images_are_left_out() {
        let golden = golden();
        let cases = golden["cases"].as_array().unwrap();
        let of = |case: &Json, name: &str| {
            let mut chats = case["conversations"].as_array().unwrap().iter();
            chats.find(|chat| chat["name"] == name).unwrap().clone()
        };
        let case = cases
            .iter()
            .find(|case| case["name"] == "qwen2_vl")
            .unwrap();
        let template = opened(case["template"].as_str().unwrap(), &Json::Null);
        let image = of(case, "image");
        let written = template
            .render(&conversation(&image["messages"]), None)
            .unwrap();
        let shown = "<|vision_start|><|image_pad|><|vision_end|>";
        assert_eq!(
            written,
            image["expected"].as_str().unwrap().replace(shown, "")
        );
    }

    #[test]
    fn a_template_is_looked_for_in_three_files() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let template = |head: &str| {
            format!(
                "{head}{{% for m in messages %}}{{{{ bos_token }}}}{{{{ m.content }}}}{{% endfor %}}"
            )
        };
        let chat = conversation(&json!([{"role": "user", "content": "hi"}]));
        let check = |expected: Option<&str>| {
            let template = ChatTemplate::open(folder.path()).unwrap();
            let written = template.map(|template| template.render(&chat, None).unwrap());
            assert_eq!(written.as_deref(), expected);
        };
        check(None);
        write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
        check(None);
        let named = json!({"bos_token": {"content": "<b>"}, "chat_template": [
            {"name": "tool_use", "template": template("1")}, {"name": "default", "template": template("2")}]});
        write("tokenizer_config.json", &named.to_string());
        check(Some("2<b>hi"));
        let string = json!({"bos_token": null, "chat_template": template("3")});
        write("tokenizer_config.json", &string.to_string());
        check(Some("3hi"));
        write("special_tokens_map.json", r#"{"bos_token": "<m>"}"#);
        check(Some("3<m>hi"));
        let json = json!({"chat_template": template("4")});
        write("chat_template.json", &json.to_string());
        check(Some("4<m>hi"));
        write("chat_template.jinja", &template("5"));
        check(Some("5<m>hi"));
    }

    #[test]
    fn what_is_no_template_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let error = || ChatTemplate::open(folder.path()).err().unwrap().to_string();
        write(
            "tokenizer_config.json",
            r#"{"chat_template": "\n{% if %}"}"#,
        );
        let found = error();
        assert!(
            found.contains("tokenizer_config.json: line 2 of `chat_template`: "),
            "{found}"
        );
        write("chat_template.jinja", "\n\n{{ raise_exception('never') }}");
        let found = error();
        assert!(found.ends_with("chat_template.jinja:3: never"), "{found}");
        write(
            "chat_template.jinja",
            "{% for message in messages %}<{{ message.role }}>{% endfor %}",
        );
        let found = error();
        assert!(
            found.contains("leaves out what a user and an assistant say"),
            "{found}"
        );
    }
}
