//! Chat templates: the Jinja that comes with a model and makes one prompt of the messages of a chat.
//!
//! Hugging Face's templates are written for Jinja2 as `transformers` sets it up, so that this does the same: blocks are trimmed, values
//! have Python's methods, and there are `raise_exception`, `strftime_now` and a `tojson` that escapes nothing for HTML.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use pagedraft_model::checkpoint::Gguf;
use serde_json::Map;

use super::python_json;

/// The template of the embedded models. They were trained on plays, in which lines follow a name in this way.
const BUILTIN: &str = "{% for message in messages %}{{ message.role | upper }}:\n{{ message.content }}\n\n{% endfor %}\
                       {% if add_generation_prompt %}ASSISTANT:\n{% endif %}";

/// The tokens of `tokenizer_config.json` that templates know by these names.
const SPECIAL: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The name of the one template of an environment.
const NAME: &str = "chat";

/// A compiled template and the special tokens that it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: BTreeMap<&'static str, String>,
}

/// A message of a chat, with all of its fields.
pub type Message = Map<String, serde_json::Value>;

/// What a chat asks of the template.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The messages, whose contents are texts.
    pub messages: &'a [Message],
    /// Whether the prompt ends with what begins an answer.
    pub add_generation_prompt: bool,
    /// More variables, as `chat_template_kwargs` gives them.
    pub variables: Option<&'a Map<String, serde_json::Value>>,
}

impl ChatTemplate {
    /// The template of the embedded models.
    ///
    /// # Errors
    ///
    /// Never: it is known to compile.
    pub fn builtin() -> anyhow::Result<Self> {
        Self::new(BUILTIN, BTreeMap::new())
    }

    /// The template in `file`, or the one that lies in the model's directory (`chat_template.jinja`, or else the field `chat_template` of
    /// `tokenizer_config.json`). `None` if there is none.
    ///
    /// # Errors
    ///
    /// A file can't be read, or the template does not compile.
    pub fn of_directory(dir: &Path, file: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let path = dir.join("tokenizer_config.json");
        let config: serde_json::Value = match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => serde_json::Value::Null,
            Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
        };
        let beside = dir.join("chat_template.jinja");
        let source = match file.or_else(|| beside.exists().then_some(beside.as_path())) {
            Some(file) => Some(Self::read(file)?),
            None => {
                in_config(&config).with_context(|| format!("{} has no template to use", path.display()))?
            }
        };
        let Some(source) = source else { return Ok(None) };
        Self::new(&source, special_tokens(&config)).map(Some)
    }

    /// The template in `file`, or the one that a GGUF file carries. `None` if there is none.
    ///
    /// # Errors
    ///
    /// A file can't be read, or the template does not compile.
    pub fn of_gguf(gguf: &Path, file: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let gguf = Gguf::open(gguf)?;
        let source = match file {
            Some(file) => Some(Self::read(file)?),
            None => gguf.chat_template()?.map(str::to_owned),
        };
        let Some(source) = source else { return Ok(None) };
        Self::new(&source, gguf.special_tokens()?.into_iter().collect()).map(Some)
    }

    /// The template in a file, for a model without special tokens of its own.
    ///
    /// # Errors
    ///
    /// The file can't be read, or the template does not compile.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        Self::new(&Self::read(file)?, BTreeMap::new())
    }

    fn read(file: &Path) -> anyhow::Result<String> {
        std::fs::read_to_string(file)
            .with_context(|| format!("can't read the chat template {}", file.display()))
    }

    fn new(source: &str, special: BTreeMap<&'static str, String>) -> anyhow::Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, state, value| match value.kind() {
            // As Python writes them.
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            ValueKind::None => Ok(out.write_str("None")?),
            _ => minijinja::escape_formatter(out, state, value),
        });
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| anyhow::anyhow!("the chat template does not compile: {error:#}"))?;
        Ok(Self { environment, special })
    }

    /// The prompt that the template makes of messages.
    ///
    /// # Errors
    ///
    /// What the template says is wrong with the messages, or what went wrong while it ran.
    pub fn render(&self, asked: Asked<'_>) -> Result<String, String> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, value) in asked.variables.into_iter().flatten() {
            variables.insert(name, Value::from_serialize(value));
        }
        for (name, token) in &self.special {
            variables.insert(name, Value::from(token.as_str()));
        }
        variables.insert("messages", Value::from_serialize(asked.messages));
        variables.insert("add_generation_prompt", Value::from(asked.add_generation_prompt));
        let template = self.environment.get_template(NAME).map_err(|error| error.to_string())?;
        template.render(variables).map_err(|error| match (error.kind(), error.detail()) {
            (ErrorKind::InvalidOperation, Some(said)) => said.to_owned(),
            _ => error.to_string(),
        })
    }
}

/// The template of a `tokenizer_config.json`: a text, or a list of named ones, of which `default` is taken.
fn in_config(config: &serde_json::Value) -> anyhow::Result<Option<String>> {
    match config.get("chat_template") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(source)) => Ok(Some(source.clone())),
        Some(serde_json::Value::Array(named)) => {
            let default = named.iter().find(|template| template["name"] == "default");
            match default.and_then(|template| template["template"].as_str()) {
                Some(source) => Ok(Some(source.to_owned())),
                None => {
                    bail!("none of its chat templates is named \"default\": choose one with --chat-template")
                }
            }
        }
        Some(_) => bail!("its chat_template is neither a text nor a list"),
    }
}

fn special_tokens(config: &serde_json::Value) -> BTreeMap<&'static str, String> {
    let text = |name: &str| {
        let token = config.get(name)?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    SPECIAL.into_iter().filter_map(|name| Some((name, text(name)?))).collect()
}

/// `transformers` marks in templates what an assistant said by `{% generation %}` and `{% endgeneration %}`. Nobody asks for the marks
/// here, so that they become blocks that change nothing.
fn without_generation_tags(source: &str) -> String {
    let mut kept = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, from)) = rest.split_once("{%") {
        let Some((inside, after)) = from.split_once("%}") else { break };
        let name = inside.trim_matches(|c: char| c == '-' || c.is_whitespace());
        let inside = match name {
            "generation" => inside.replace(name, "if true"),
            "endgeneration" => inside.replace(name, "endif"),
            _ => inside.to_owned(),
        };
        kept.extend([before, "{%", &inside, "%}"]);
        rest = after;
    }
    kept + rest
}

/// The time now in UTC, written as `strftime` does.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// JSON as Python's `json.dumps` writes it.
fn tojson(value: &Value, indent: Option<u32>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<u32>>("indent")?,
    };
    // Keys are sorted and other scripts kept as they are anyway.
    let _ = (options.get::<Option<bool>>("ensure_ascii")?, options.get::<Option<bool>>("sort_keys")?);
    options.assert_all_used()?;
    let text = python_json::dumps(value, indent)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, "tojson").with_source(error))?;
    Ok(Value::from_safe_string(text))
}

#[cfg(test)]
mod tests;
