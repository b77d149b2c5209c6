//! Chat templates: a conversation to the text the model was trained on.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind as TemplateErrorKind, Value as TemplateValue};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

const TEMPLATE: &str = "chat template";
/// Steps that a template may take: some hundreds a message in good ones, so that one that loops for days ends in a second.
const TEMPLATE_FUEL: u64 = 10_000_000;
/// Tokens that templates refer to by these names.
const TOKEN_NAMES: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// One turn of a conversation.
///
/// Rendered by a [`ChatTemplate`]; see its example.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
///
/// ```
/// use codecllm::runtime::{ChatTemplate, Message};
/// let config = r#"{"bos_token": "<s>",
///     "chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"}"#;
/// let template = ChatTemplate::from_json(config, "tokenizer_config.json")?.unwrap();
/// assert_eq!(template.render(&[Message::new("user", "Hi")], false)?, "<s>[user] Hi\n");
/// // That of a directory; this one has none.
/// assert!(ChatTemplate::from_dir(tempfile::tempdir().unwrap().path())?.is_none());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// The template of the model directory `dir`: `chat_template.jinja`, or `chat_template` in
    /// `tokenizer_config.json`. `None` if it has neither.
    ///
    /// # Errors
    /// `Io` or `Corrupt` for a file that cannot be read or is not a template.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let read = |name: &str| -> Result<Option<(String, String)>> {
            let path = dir.as_ref().join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some((text, path.display().to_string()))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Error::io(&path, e)),
            }
        };
        let config = match read("tokenizer_config.json")? {
            Some((text, subject)) => (parse_object(&text, &subject)?, subject),
            None => (Map::new(), "tokenizer_config.json".to_owned()),
        };
        match read("chat_template.jinja")? {
            Some((source, subject)) => Self::new(source, &config.0, &subject).map(Some),
            None => Self::from_config(&config.0, &config.1),
        }
    }

    /// The template in the text of a `tokenizer_config.json`; `subject` is its name for messages.
    ///
    /// # Errors
    /// `Corrupt` if it is not JSON or the template does not parse.
    pub fn from_json(json: &str, subject: &str) -> Result<Option<Self>> {
        Self::from_config(&parse_object(json, subject)?, subject)
    }

    fn from_config(config: &Map<String, Value>, subject: &str) -> Result<Option<Self>> {
        let source = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => Some(source.as_str()),
            Some(Value::Array(named)) => default_template(named),
            Some(_) => None,
        };
        let Some(source) = source else {
            let wanted = "a string or a list with a template named default";
            return Err(Error::corrupt(subject, format!("chat_template is not {wanted}")));
        };
        Self::new(source.to_owned(), config, subject).map(Some)
    }

    fn new(source: String, config: &Map<String, Value>, subject: &str) -> Result<Self> {
        let mut environment = Environment::new();
        // What the reference implementation renders with.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(TEMPLATE_FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(TEMPLATE, source)
            .map_err(|e| template_error(ErrorKind::Corrupt, subject, e))?;
        let tokens =
            TOKEN_NAMES.iter().filter_map(|name| Some((*name, token_text(config.get(*name)?)?))).collect();
        Ok(Self { environment, tokens })
    }

    /// The text of a conversation, with the start of the assistant's next turn if `add_generation_prompt`.
    /// Its special tokens are written out: encode it without adding more.
    ///
    /// # Errors
    /// `InvalidArgument` if the template refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let mut context = std::collections::BTreeMap::from([
            ("messages", TemplateValue::from_serialize(messages)),
            ("add_generation_prompt", TemplateValue::from(add_generation_prompt)),
        ]);
        context.extend(self.tokens.iter().map(|(name, text)| (*name, TemplateValue::from(text.as_str()))));
        let template = self.environment.get_template(TEMPLATE);
        template
            .and_then(|template| template.render(context))
            .map_err(|e| template_error(ErrorKind::InvalidArgument, TEMPLATE, e))
    }
}

fn parse_object(json: &str, subject: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(json)
        .map_err(|e| Error::corrupt(subject, format!("is not a JSON object: {e}")).with_source(e))
}

/// The template named `default` of a list of `{"name": ..., "template": ...}`.
fn default_template(named: &[Value]) -> Option<&str> {
    named.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str())
}

/// A token is a string, or an object with its string as `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

fn template_error(kind: ErrorKind, subject: &str, error: minijinja::Error) -> Error {
    Error::new(kind, subject, format!("chat template: {error}")).with_source(error)
}

/// Templates refuse conversations they cannot express with this.
fn raise_exception(message: String) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(TemplateErrorKind::InvalidOperation, message))
}

/// JSON in Python's spelling (a space behind `,` and `:`, nothing escaped for HTML), as models have seen it.
fn to_json(value: TemplateValue, options: Kwargs) -> std::result::Result<TemplateValue, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let failed =
        |e: serde_json::Error| minijinja::Error::new(TemplateErrorKind::BadSerialization, e.to_string());
    let mut bytes = Vec::new();
    let result = match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(64)];
            let pretty = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            serde::Serialize::serialize(
                &value,
                &mut serde_json::Serializer::with_formatter(&mut bytes, pretty),
            )
        }
        None => serde::Serialize::serialize(
            &value,
            &mut serde_json::Serializer::with_formatter(&mut bytes, Spaced),
        ),
    };
    result.map_err(failed)?;
    // Not auto-escaped again.
    Ok(TemplateValue::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Compact JSON with a space behind each `,` and `:`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            out.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            out.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// Today (UTC) in a `strftime` format; templates tell the model the date with it.
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    strftime(&format, seconds).map_err(|what| {
        minijinja::Error::new(TemplateErrorKind::InvalidOperation, format!("strftime_now: {what}"))
    })
}

fn strftime(format: &str, unix_seconds: u64) -> std::result::Result<String, String> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = civil_date(unix_seconds / 86400);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(month_name.get(..3).unwrap_or_default()),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('%') => out.push('%'),
            other => {
                return Err(format!("format {format:?} has {other:?} behind %, wanted one of YmdBbHMS%"))
            }
        }
    }
    Ok(out)
}

/// Year, month and day of the Gregorian calendar, `days` days after 1970-01-01 (H. Hinnant's civil_from_days:
/// years start in March, so that the leap day is the last of its year).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `date -u -d @SECONDS`.
        assert_eq!(strftime("%d %b %Y %H:%M:%S", 0).unwrap(), "01 Jan 1970 00:00:00");
        assert_eq!(strftime("%Y-%m-%d", 951_782_400).unwrap(), "2000-02-29");
        assert_eq!(strftime("%B %d, %Y 100%%", 1_735_689_599).unwrap(), "December 31, 2024 100%");
        assert!(strftime("%Q", 0).unwrap_err().contains('Q'));
    }
}
