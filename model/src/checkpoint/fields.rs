//! Typed, named access to the fields of a JSON object, so that every complaint names its field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::ModelError;

/// One JSON object of a file: the file itself or an object nested in it.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// "" for the file itself, "rope_scaling." for a nested object.
    prefix: &'a str,
    object: &'a Map<String, Value>,
}

/// Parses a JSON file whose top is an object.
pub(super) fn parse_object(path: &Path, json: &[u8]) -> Result<Map<String, Value>, ModelError> {
    let bad = |reason: String| ModelError::BadJson { path: path.to_owned(), reason };
    match serde_json::from_slice(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(bad("expected a JSON object at the top".to_owned())),
        Err(error) => Err(bad(error.to_string())),
    }
}

impl<'a> Fields<'a> {
    pub fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Fields { path, prefix: "", object }
    }

    /// The fields of an object whose names are written with `prefix` in front.
    pub fn within(path: &'a Path, prefix: &'a str, object: &'a Map<String, Value>) -> Self {
        Fields { path, prefix, object }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// Whether the file writes the field, be it as null.
    pub fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// The names of the fields that are not null.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.object.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    /// The value of a field; JSON null is the same as no field. Where transformers makes a difference,
    /// [`has`](Self::has) tells.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// A nested object. `prefix` is its name with a dot.
    pub fn nested(&self, name: &str, prefix: &'a str) -> Result<Option<Fields<'a>>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { path: self.path, prefix, object })),
            Some(other) => Err(self.bad(name, other, "an object, or null")),
        }
    }

    pub fn missing(&self, name: &str, expected: &'static str) -> ModelError {
        ModelError::MissingField {
            path: self.path.to_owned(),
            field: format!("{}{name}", self.prefix),
            expected,
        }
    }

    pub fn bad(&self, name: &str, found: impl std::fmt::Display, expected: impl Into<String>) -> ModelError {
        let mut found = found.to_string();
        if found.len() > 80 {
            found = found.chars().take(77).collect::<String>() + "...";
        }
        ModelError::BadField {
            path: self.path.to_owned(),
            field: format!("{}{name}", self.prefix),
            found,
            expected: expected.into(),
        }
    }

    pub fn unsupported(&self, feature: impl Into<String>, hint: impl Into<String>) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), feature: feature.into(), hint: hint.into() }
    }

    /// A whole number in `1..=most`.
    pub fn optional_size(&self, name: &str, most: u64) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match whole(value) {
            Some(number) if (1..=most).contains(&number) => Ok(Some(number as usize)),
            _ => Err(self.bad(name, value, format!("a whole number from 1 to {most}"))),
        }
    }

    /// A whole number in `1..=most`, or `default` where the file does not write the field. Null is refused,
    /// as transformers has no default for it either.
    pub fn size_or(&self, name: &str, most: u64, default: usize) -> Result<usize, ModelError> {
        match self.optional_size(name, most)? {
            Some(size) => Ok(size),
            None if self.has(name) => {
                Err(self.bad(name, "null", format!("a whole number from 1 to {most}, or no such field")))
            }
            None => Ok(default),
        }
    }

    /// A whole number, 0 included.
    pub fn count_or(&self, name: &str, default: u64) -> Result<u64, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        whole(value).ok_or_else(|| self.bad(name, value, "a whole number of at least 0"))
    }

    /// A finite number above zero.
    pub fn optional_positive(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => Err(self.bad(name, value, "a finite number above 0")),
        }
    }

    pub fn positive(&self, name: &str) -> Result<f64, ModelError> {
        self.optional_positive(name)?.ok_or_else(|| self.missing(name, "a finite number above 0"))
    }

    pub fn boolean(&self, name: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.bad(name, other, "true or false")),
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(name, other, "a string")),
        }
    }

    /// Token ids: none, one, or a list.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.bad(name, value, "a token id, or a list of them"))
        };
        match self.get(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

/// A whole number of at least 0.
fn whole(value: &Value) -> Option<u64> {
    // Some exporters write 4096.0.
    value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        (float.fract() == 0.0 && (0.0..=9e15).contains(&float)).then_some(float as u64)
    })
}
