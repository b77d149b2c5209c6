//! Typed access to a GGUF's keys, with errors that name file, key, got and wanted.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::value::{Number, Texts, Value};
use crate::error::{Error, Result};

/// Larger counts than this are an error: products of two stay in 64 bits.
const MOST_COUNT: i128 = 1 << 31;
/// What a message shows of a value at most.
const MOST_SHOWN_CHARS: usize = 200;

/// The keys of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    path: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub fn new(path: String, values: BTreeMap<String, Value>) -> Self {
        Self { path, values }
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A number from 1 to 2^31.
    pub fn count(&self, key: &str) -> Result<usize> {
        self.count_or(key, None)
    }

    /// A number from 1 to 2^31; where the key is missing, `default`.
    pub fn count_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let wanted = "a number from 1 to 2147483648";
        match (self.get(key), default) {
            (Some(Value::Number(Number::Integer(count))), _) if (1..=MOST_COUNT).contains(count) => {
                Ok(*count as usize)
            }
            (Some(other), _) => Err(self.corrupt(key, other, wanted)),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.corrupt(key, "missing", wanted)),
        }
    }

    /// A positive number, or none where the key is missing.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        let value = match self.get(key) {
            None => return Ok(None),
            Some(Value::Number(Number::Float(value))) => Some(*value),
            Some(Value::Number(Number::Integer(value))) => Some(*value as f64),
            Some(_) => None,
        };
        match (value.filter(|value| value.is_finite() && *value > 0.0), self.get(key)) {
            (Some(value), _) => Ok(Some(value)),
            (None, Some(got)) => Err(self.corrupt(key, got, "a positive number")),
            (None, None) => Ok(None),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.corrupt(key, other, "a string")),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<&Texts>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(other) => Err(self.corrupt(key, other, "an array of strings")),
        }
    }

    /// An array of numbers, to be counted before anything is made of them: a byte of the file may be one.
    pub fn numbers(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = Option<Number>> + '_>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.numbers().map(Some).ok_or_else(|| self.corrupt(key, value, "an array of numbers"))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(Number::Bool(flag))) => Ok(Some(*flag)),
            Some(other) => Err(self.corrupt(key, other, "true or false")),
        }
    }

    pub fn corrupt(&self, key: &str, got: impl Display, wanted: &str) -> Error {
        Error::corrupt(&*self.path, format!("{key} is {}, wanted {wanted}", shown(got)))
    }

    /// The key says something that is not implemented; `wanted` ends with a cure, if there is one.
    pub fn unsupported(&self, key: &str, got: impl Display, wanted: &str) -> Error {
        let got = shown(got);
        Error::unsupported(&*self.path, format!("{key} is {got}, which cannot be imported; wanted {wanted}"))
    }
}

/// The beginning of a value that may be as long as a header.
fn shown(value: impl Display) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MOST_SHOWN_CHARS) {
        None => text,
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}
