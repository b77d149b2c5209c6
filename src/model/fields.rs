//! Typed access to the settings of a JSON object, with errors that name file, setting, got and wanted.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Larger sizes than this in a configuration are an error: products of two stay in 64 bits.
const MAX_COUNT: u64 = 1 << 31;

/// A JSON object of settings. Null and absent are the same.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    subject: &'a str,
    /// Path of the object inside the file, with a trailing dot: `rope_scaling.`
    prefix: String,
}

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Map<String, Value>, subject: &'a str, prefix: &str) -> Self {
        Self { object, subject, prefix: prefix.to_owned() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn section(&self, name: &str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields::new(object, self.subject, &format!("{name}.")))),
            Some(other) => Err(self.corrupt(name, other, "an object or null")),
        }
    }

    /// The first setting that is an object itself.
    pub(super) fn nested(&self) -> Option<(&'a str, &'a Value)> {
        self.object.iter().find(|(_, value)| value.is_object()).map(|(name, value)| (name.as_str(), value))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.corrupt(name, other, "a string")),
        }
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.corrupt(name, other, "true or false")),
        }
    }

    /// A number from 1 to 2^31.
    pub(super) fn count(&self, name: &str) -> Result<usize> {
        let wanted = "a number from 1 to 2147483648";
        let value = self.get(name).ok_or_else(|| self.corrupt(name, &"missing", wanted))?;
        let count = value.as_u64().filter(|count| (1..=MAX_COUNT).contains(count));
        count.and_then(|count| usize::try_from(count).ok()).ok_or_else(|| self.corrupt(name, value, wanted))
    }

    pub(super) fn count_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.get(name).is_some() {
            self.count(name)
        } else {
            Ok(default)
        }
    }

    pub(super) fn positive(&self, name: &str) -> Result<f64> {
        let value = self.get(name).ok_or_else(|| self.corrupt(name, &"missing", "a positive number"))?;
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number.ok_or_else(|| self.corrupt(name, value, "a positive number"))
    }

    pub(super) fn positive_or(&self, name: &str, default: f64) -> Result<f64> {
        if self.get(name).is_some() {
            self.positive(name)
        } else {
            Ok(default)
        }
    }

    pub(super) fn corrupt(&self, name: &str, got: &dyn Display, wanted: &str) -> Error {
        Error::corrupt(self.subject, format!("{}{name} is {got}, wanted {wanted}", self.prefix))
    }

    pub(super) fn unsupported(&self, name: &str, got: impl Display, wanted: &str) -> Error {
        let name = format!("{}{name}", self.prefix);
        Error::unsupported(
            self.subject,
            format!("{name} is {got}, which is not implemented; wanted {wanted}"),
        )
    }
}
