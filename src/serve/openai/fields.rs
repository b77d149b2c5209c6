//! The fields of a request, taken one by one: of the type and in the range wanted, and none left over.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::ApiError;

/// The fields of a JSON object that nobody has looked at yet. A field that is `null` counts as absent.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => {
                let message = format!("the body is {}, wanted a JSON object", type_of(&other));
                Err(ApiError::refused(400, message))
            }
            Err(error) => Err(ApiError::refused(400, format!("the body is not JSON: {error}"))),
        }
    }

    /// The fields of an object within the request.
    pub(crate) fn of(value: Value, place: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(wrong_type(place, &other, "an object")),
        }
    }

    /// The field as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "true or false", |value| value.as_bool())
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.typed(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A whole number of any sign.
    pub(crate) fn integer(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        self.typed(name, "an integer of 64 bits", Value::as_i64)
    }

    /// A whole number in `range`.
    pub(crate) fn count(
        &mut self,
        name: &str,
        range: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        let wanted = if *range.end() == usize::MAX {
            format!("an integer, {} or more", range.start())
        } else {
            format!("an integer from {} to {}", range.start(), range.end())
        };
        match count.filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(wrong_value(name, &value, wanted)),
        }
    }

    /// A number in `range`.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(wrong_value(name, &value, format!("a number from {} to {}", range.start(), range.end())))
            }
        }
    }

    /// Refuses a parameter that this server does not do, unless its value asks for nothing.
    pub(crate) fn refuse_unless(
        &mut self,
        name: &str,
        asks_for_nothing: impl FnOnce(&Value) -> bool,
        cure: &str,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !asks_for_nothing(&value) => {
                Err(ApiError::parameter(name, format_args!("not supported by this server; {cure}"))
                    .with_code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// Takes what says nothing about the answer.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Refuses what is left: nothing that a client asks for is passed over in silence. `place` is where the object is.
    pub(crate) fn finish(self, place: Option<&str>) -> Result<(), ApiError> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => {
                let param = place.map_or_else(|| name.clone(), |place| format!("{place}.{name}"));
                Err(ApiError::parameter(clip(&param), "this server knows no such parameter")
                    .with_code("unknown_parameter"))
            }
        }
    }

    fn typed<T>(
        &mut self,
        name: &str,
        wanted: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(wrong_value(name, &value, wanted)),
        }
    }
}

/// An error about a value of a wrong type.
pub(crate) fn wrong_type(param: &str, value: &Value, wanted: impl Display) -> ApiError {
    ApiError::parameter(param, format_args!("is {}, wanted {wanted}", type_of(value)))
}

/// An error about a value, which is shown if it is short.
fn wrong_value(param: &str, value: &Value, wanted: impl Display) -> ApiError {
    match value {
        Value::Array(_) | Value::Object(_) => wrong_type(param, value, wanted),
        _ => ApiError::parameter(param, format_args!("is {}, wanted {wanted}", clip(&value.to_string()))),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The first characters of what a client sent, so that an error stays short.
pub(crate) fn clip(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
    }
}
