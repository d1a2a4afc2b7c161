//! The template of a model's conversations.

use super::Message;
use super::engine::{environment, without_generation_tags};
use crate::error::ModelError;
use crate::json;
use crate::tokenizer::TextTokenizer;
use minijinja::{Value as Filling, context};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file that holds a template and nothing else. It comes first, as in Hugging Face's code.
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Files with a field of the name `chat_template`, in the order in which they are looked at.
const TEMPLATE_FIELDS: [&str; 2] = ["tokenizer_config.json", "chat_template.json"];
/// The field, a text or a list of objects with `name` and `template`.
const FIELD: &str = "chat_template";
/// The name of the template that is taken of several.
const DEFAULT: &str = "default";
/// Fields of `tokenizer_config.json` that templates find under their names.
const TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// How a model writes a conversation down, in Jinja.
///
/// # Example
/// ```
/// use pixel_models::chat::{ChatTemplate, Message};
///
/// let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
///               {% if add_generation_prompt %}<|assistant|>{% endif %}";
/// let template = ChatTemplate::new(source)?;
/// let text = template.render(&[Message::user("Hello")], true)?;
/// assert_eq!(text, "<|user|>Hello<|end|><|assistant|>");
/// # Ok::<(), pixel_models::ModelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// A template of its own, without special tokens.
    ///
    /// # Errors
    /// [`ModelError::Template`] if it is not one.
    pub fn new(source: &str) -> Result<Self, ModelError> {
        Self::from_source(TEMPLATE_FILE.into(), source, BTreeMap::new())
    }

    /// The template of the model at `path`, a directory or a `.safetensors` file in it: that of `chat_template.jinja`,
    /// or else the field `chat_template` of `tokenizer_config.json` or `chat_template.json`, of several the one named
    /// `default`. `bos_token` and `eos_token` are those of the files, or else of `tokenizer`.
    ///
    /// # Errors
    /// [`ModelError::NoTemplate`] if there is none; [`ModelError::Io`], [`ModelError::Json`], [`ModelError::Config`]
    /// and [`ModelError::Template`] for one that is not what it should be.
    pub fn of_model(path: impl AsRef<Path>, tokenizer: Option<&TextTokenizer>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let folder = if path.is_file() { path.parent().unwrap_or(Path::new("")) } else { path };
        let (file, source) = find(folder)?;
        Self::from_source(file, &source, special_tokens(folder, tokenizer)?)
    }

    fn from_source(path: PathBuf, source: &str, tokens: BTreeMap<String, String>) -> Result<Self, ModelError> {
        let template = Self { path, source: without_generation_tags(source), tokens };
        environment().template_from_str(&template.source).map_err(|error| template.error(&error))?;
        Ok(template)
    }

    /// A conversation as the model reads it; with `add_generation_prompt`, up to where an answer begins.
    ///
    /// # Errors
    /// [`ModelError::Template`] if the template refuses the messages, for instance their order.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ModelError> {
        let message =
            |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
        let given = context! {
            messages => messages.iter().map(message).collect::<Vec<Filling>>(),
            add_generation_prompt => add_generation_prompt,
            tools => (),
            documents => (),
        };
        let tokens = self.tokens.iter().map(|(name, text)| (name.as_str(), Filling::from(text.as_str())));
        let all = context! { ..given, ..Filling::from_pairs(tokens) };
        environment().render_str(&self.source, all).map_err(|error| self.error(&error))
    }

    fn error(&self, error: &minijinja::Error) -> ModelError {
        let message = match (error.line(), error.detail()) {
            (Some(line), Some(detail)) => format!("line {line}: {detail}"),
            _ => error.to_string(),
        };
        ModelError::Template { path: self.path.clone(), message }
    }
}

/// The file that has the template, and the template.
fn find(folder: &Path) -> Result<(PathBuf, String), ModelError> {
    let file = folder.join(TEMPLATE_FILE);
    if file.exists() {
        let source = std::fs::read_to_string(&file).map_err(ModelError::io(&file))?;
        return Ok((file, source));
    }
    for name in TEMPLATE_FIELDS {
        let file = folder.join(name);
        let value = json::read_if_there(&file)?.and_then(|value| value.get(FIELD).cloned());
        if let Some(value) = value.filter(|value| !value.is_null()) {
            let source = chosen(&file, &value)?;
            return Ok((file, source));
        }
    }
    let looked_for = format!("{TEMPLATE_FILE}, and \"{FIELD}\" in {}", TEMPLATE_FIELDS.join(" and "));
    Err(ModelError::NoTemplate { path: folder.into(), looked_for })
}

/// The template of a field: a text, or one of a list.
fn chosen(file: &Path, value: &Value) -> Result<String, ModelError> {
    let wrong = |reason: String| ModelError::Config {
        path: file.into(),
        field: FIELD.into(),
        value: value.to_string().chars().take(80).collect(),
        reason,
    };
    let templates = match value {
        Value::String(source) => return Ok(source.clone()),
        Value::Array(templates) => templates,
        _ => return Err(wrong("it must be a text or a list of named templates".into())),
    };
    let named = |template: &Value| {
        let text = |field: &str| Some(template.get(field)?.as_str()?.to_owned());
        text("name").zip(text("template"))
    };
    let Some(named) = templates.iter().map(named).collect::<Option<Vec<_>>>() else {
        return Err(wrong("each template of the list must have a name and a template".into()));
    };
    let names = named.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let found = named.iter().find(|(name, _)| name == DEFAULT).or(named.first().filter(|_| named.len() == 1));
    found.map(|(_, source)| source.clone()).ok_or_else(|| wrong(format!("none is named {DEFAULT}, of: {names}")))
}

/// The texts of special tokens by the names that templates use.
fn special_tokens(folder: &Path, tokenizer: Option<&TextTokenizer>) -> Result<BTreeMap<String, String>, ModelError> {
    let config = json::read_if_there(&folder.join(TEMPLATE_FIELDS[0]))?.unwrap_or(Value::Object(Map::new()));
    let text = |name: &&str| {
        let token = config.get(name)?;
        Some(((*name).to_owned(), token.get("content").unwrap_or(token).as_str()?.to_owned()))
    };
    let mut tokens = TOKENS.iter().filter_map(text).collect::<BTreeMap<_, _>>();
    let known =
        |id: fn(&TextTokenizer) -> Option<u32>| tokenizer.and_then(|tokenizer| tokenizer.name_of(id(tokenizer)?));
    for (name, text) in [("bos_token", known(TextTokenizer::bos_id)), ("eos_token", known(TextTokenizer::eos_id))] {
        if let Some(text) = text {
            tokens.entry(name.to_owned()).or_insert(text);
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tempfile::TempDir;

    fn folder(files: &[(&str, String)]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for (name, contents) in files {
            std::fs::write(folder.path().join(name), contents).unwrap();
        }
        folder
    }

    fn config(template: Value) -> String {
        json!({ "chat_template": template, "bos_token": "<s>", "eos_token": { "content": "</s>" } }).to_string()
    }

    fn rendered(files: &[(&str, String)]) -> Result<String, String> {
        let folder = folder(files);
        let template = ChatTemplate::of_model(folder.path(), None);
        let text = template.and_then(|template| template.render(&[Message::user("hi")], true));
        text.map_err(|error| error.to_string().replace(&folder.path().display().to_string(), "M"))
    }

    #[test]
    fn a_template_is_found_in_each_of_the_files() {
        let source =
            "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ add_generation_prompt }}{{ tools is none }}";
        let expected = Ok("<s>hi</s>TrueTrue".to_owned());
        assert_eq!(rendered(&[("tokenizer_config.json", config(json!(source)))]), expected);
        let list = json!([{ "name": "tool_use", "template": "{{" }, { "name": "default", "template": source }]);
        assert_eq!(rendered(&[("tokenizer_config.json", config(list))]), expected);
        let beside = json!({ "chat_template": source }).to_string();
        assert_eq!(
            rendered(&[("tokenizer_config.json", config(Value::Null)), ("chat_template.json", beside)]),
            expected
        );
        let file = ("chat_template.jinja", source.to_owned());
        assert_eq!(rendered(&[("tokenizer_config.json", config(json!("other"))), file]), expected);
    }

    #[test]
    fn what_is_wrong_with_a_template_is_told_with_its_file() {
        assert_eq!(
            rendered(&[]).unwrap_err(),
            "M: no template of a conversation; looked for chat_template.jinja, and \"chat_template\" in \
             tokenizer_config.json and chat_template.json"
        );
        let of = |template: Value| rendered(&[("tokenizer_config.json", config(template))]).unwrap_err();
        assert!(of(json!("{% if %}")).starts_with("M/tokenizer_config.json: template of a conversation: line 1: "));
        let refused = of(json!("a\n{{ raise_exception('No system') }}"));
        assert_eq!(refused, "M/tokenizer_config.json: template of a conversation: line 2: No system");
        assert!(of(json!(7)).starts_with("M/tokenizer_config.json: field \"chat_template\" is 7: it must be a text"));
        let unnamed = json!([{ "name": "a", "template": "" }, { "name": "b", "template": "" }]);
        assert!(of(unnamed).ends_with("none is named default, of: a, b"));
        assert!(of(json!(["a"])).ends_with("each template of the list must have a name and a template"));
    }
}
