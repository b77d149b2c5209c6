//! When generation ends: tokens the model stops at, strings the user stops at.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Why a generation ended.
///
/// Said by a [`Generator`](super::Generator) of each answer; see its example.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model chose this stop token; it is not part of the answer.
    StopToken(u32),
    /// This stop string came up; the answer ends before it.
    StopString(String),
    /// As many tokens as were asked for.
    MaxNewTokens,
    /// The context is full.
    Context,
    /// The caller asked for an end.
    Interrupted,
    /// The time given to it is over.
    Deadline,
}

/// The stop tokens of the model directory `dir`: every `eos_token_id`, a number or a list, of
/// `generation_config.json` (if there is one) and `config.json`, sorted.
///
/// ```
/// use codecllm::runtime::stop_tokens;
/// let dir = tempfile::tempdir().unwrap();
/// std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": [7, 2]}"#).unwrap();
/// assert_eq!(stop_tokens(dir.path())?, [2, 7]);
/// # Ok::<(), codecllm::Error>(())
/// ```
///
/// # Errors
/// `Io` or `Corrupt` for a file that cannot be read or an `eos_token_id` of another type.
pub fn stop_tokens(dir: impl AsRef<Path>) -> Result<Vec<u32>> {
    let mut tokens = read_eos(&dir.as_ref().join("config.json"))?;
    let generation = dir.as_ref().join("generation_config.json");
    if generation.exists() {
        tokens.extend(read_eos(&generation)?);
    }
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

fn read_eos(path: &Path) -> Result<Vec<u32>> {
    let subject = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let object: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|e| Error::corrupt(&*subject, format!("is not a JSON object: {e}")).with_source(e))?;
    let value = object.get("eos_token_id").unwrap_or(&Value::Null);
    let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let tokens = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(token).collect(),
        one => token(one).map(|id| vec![id]),
    };
    tokens.ok_or_else(|| {
        Error::corrupt(subject, format!("eos_token_id is {value}, wanted a token id or a list of them"))
    })
}

/// Watches streamed text for stop strings, holding back text that may be the start of one.
///
/// ```
/// use codecllm::runtime::StopStrings;
/// let mut stops = StopStrings::new(&["END".to_owned()]);
/// assert_eq!(stops.push("the E"), ("the ".to_owned(), None));
/// assert_eq!(stops.push("ast EN"), ("East ".to_owned(), None));
/// assert_eq!(stops.push("D!"), (String::new(), Some("END".to_owned())));
/// // What could have been one and is none comes out in the end.
/// let mut stops = StopStrings::new(&["END".to_owned()]);
/// assert_eq!((stops.push("an E"), stops.finish()), (("an ".to_owned(), None), "E".to_owned()));
/// ```
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for `stops`; empty strings are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds text; returns what can be shown, and the stop string if one came up (nothing follows it).
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        // The stop string that is complete first, whatever pieces the text comes in.
        let place = |stop: &'_ String| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at));
        let found = self.stops.iter().filter_map(|stop| place(stop).map(|place| (place, stop))).min();
        if let Some(((_, at), stop)) = found {
            let stop = stop.clone();
            self.held.truncate(at);
            return (self.finish(), Some(stop));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// The text held back, once no more can come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that `stop` starts with.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).rev();
    ends.into_iter().find(|&at| stop.get(..at).is_some_and(|start| text.ends_with(start))).unwrap_or(0)
}
