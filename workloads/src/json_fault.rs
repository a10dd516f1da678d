//! Says what is wrong with a JSON text by naming the field: "`stop`: expected a text or a list of texts,
//! found 5".

use std::fmt::{self, Display, Formatter};

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

/// What is wrong with a JSON text, and in which line of it.
///
/// Its text names the field, what was expected and what was found. It does not name the line, because only
/// the caller knows where in a file the text begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFault {
    /// The line of the text, counted from 1.
    pub line: u64,
    what: String,
}

impl Display for JsonFault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for JsonFault {}

/// Reads a JSON text. A correct text is read once, without any book-keeping. Only a wrong one is read
/// again, to find out which field is wrong.
///
/// # Errors
///
/// The text is not JSON, or is something else than a `T`.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, JsonFault> {
    let error = match serde_json::from_slice(text) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    let mut again = serde_json::Deserializer::from_slice(text);
    match serde_path_to_error::deserialize::<_, T>(&mut again) {
        Err(at) if at.inner().is_data() => {
            let path = at.path().clone();
            Err(JsonFault { line: line_of(text, &path), what: told(&path, &at.into_inner()) })
        }
        _ => Err(syntax(&error)),
    }
}

/// Reads a JSON text in which a field that is `null` counts as missing.
///
/// # Errors
///
/// The text is not JSON, or is something else than a `T`.
pub fn parse_without_nulls<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonFault> {
    let value: Value = serde_json::from_slice(text).map_err(|error| syntax(&error))?;
    serde_path_to_error::deserialize(without_nulls(value)).map_err(|at| {
        let path = at.path().clone();
        JsonFault { line: line_of(text, &path), what: told(&path, &at.into_inner()) }
    })
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(there.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// The message for a text that is not JSON.
fn syntax(error: &serde_json::Error) -> JsonFault {
    let whole = error.to_string();
    let what = whole.split(" at line ").next().unwrap_or_default();
    let cut = if error.is_eof() { ": is it cut?" } else { "" };
    let what = format!("it is not JSON: {what} at column {}{cut}", error.column());
    JsonFault { line: (error.line() as u64).max(1), what }
}

/// The message that names the field and says what is wrong with it.
fn told(path: &Path, error: &serde_json::Error) -> String {
    let whole = error.to_string();
    let message = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(message, _)| message);
    let at = path.to_string();
    let at = if at == "." { String::new() } else { at };
    let quoted = |rest: &str| rest.split('`').nth(1).unwrap_or_default().to_owned();
    let inside = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    if let Some(rest) = message.strip_prefix("missing field ") {
        return format!("`{}` is missing", inside(&quoted(rest)));
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let (name, known) = rest.split_once(", ").unwrap_or((rest, ""));
        let known = known.trim_start_matches("expected one of ").trim_start_matches("expected ");
        let name = quoted(name);
        // The path may or may not end with the unknown field itself.
        let name = if at == name || at.ends_with(&format!(".{name}")) { at.clone() } else { inside(&name) };
        return format!("`{name}` is no field that is known here; known are {known}");
    }
    if let Some(rest) = message.strip_prefix("duplicate field ") {
        return format!("`{}` is given twice", inside(&quoted(rest)));
    }
    let what = match wrong_kind(message) {
        Some((found, expected)) => format!("expected {expected}, found {found}"),
        None => message.to_owned(),
    };
    if at.is_empty() { what } else { format!("`{at}`: {what}") }
}

/// The parts (found, expected) of serde's message "invalid type: FOUND, expected EXPECTED".
fn wrong_kind(message: &str) -> Option<(String, String)> {
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let (found, expected) = rest.split_once(", expected ")?;
        return Some((format!("the text {found}"), expected.to_owned()));
    }
    let kinds = ["invalid type: ", "invalid value: ", "invalid length: "];
    let rest = kinds.iter().find_map(|kind| message.strip_prefix(kind))?;
    // The last ", expected " is the right one: FOUND may be any text, but EXPECTED does not contain these
    // words.
    let (found, expected) = rest.rsplit_once(", expected ")?;
    Some((found_as(found), expected_as(expected)))
}

fn found_as(found: &str) -> String {
    let number = |rest: &str| rest.trim_matches('`').to_owned();
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        "null" | "unit value" | "Option value" => "null".to_owned(),
        _ => {
            if let Some(text) = found.strip_prefix("string ") {
                return format!("the text {}", shortened(text));
            }
            let kinds = ["integer ", "floating point ", "boolean "];
            kinds
                .iter()
                .find_map(|kind| found.strip_prefix(kind).map(number))
                .unwrap_or_else(|| shortened(found))
        }
    }
}

/// Shortens a long text.
fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn expected_as(expected: &str) -> String {
    let whole = |most: &str| format!("a whole number from 0 to {most}");
    match expected {
        "a string" | "a borrowed string" | "string or bytes" => "a text".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "u8" => whole(&u8::MAX.to_string()),
        "u16" => whole(&u16::MAX.to_string()),
        "u32" => whole(&u32::MAX.to_string()),
        "u64" | "usize" => whole(&u64::MAX.to_string()),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "i64" | "isize" => format!("a whole number from {} to {}", i64::MIN, i64::MAX),
        "a sequence" => "a list".to_owned(),
        "a map" => "an object".to_owned(),
        _ if expected.starts_with("struct ") => "an object".to_owned(),
        _ if expected.starts_with("a tuple of size ") => {
            expected.replace("a tuple of size", "a list of length")
        }
        _ => expected.to_owned(),
    }
}

/// The line of `text` in which the value at `path` begins.
fn line_of(text: &[u8], path: &Path) -> u64 {
    let mut json = serde_json::Deserializer::from_slice(text);
    let mut steps: Vec<&Segment> = path.iter().collect();
    // If the last step of the path is a field that is missing, the object that should have it is meant.
    loop {
        match (Seek { steps: &steps }).deserialize(&mut json) {
            Err(error) => return (error.line() as u64).max(1),
            Ok(()) if steps.pop().is_some() => json = serde_json::Deserializer::from_slice(text),
            Ok(()) => return 1,
        }
    }
}

/// Walks to a value and fails there on purpose. The error then says in which line the value begins.
struct Seek<'p> {
    steps: &'p [&'p Segment],
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        match self.steps.first() {
            // Asked for a single value, the reader stops in front of an object or a list.
            None => json.deserialize_bool(Nothing),
            Some(_) => json.deserialize_any(self),
        }
    }
}

/// A type that accepts no value at all.
struct Nothing;

impl Visitor<'_> for Nothing {
    type Value = ();

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match self.steps.split_first() {
                Some((Segment::Map { key }, rest)) if *key == name => {
                    map.next_value_seed(Seek { steps: rest })?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Segment::Seq { index }, rest)) = self.steps.split_first() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        for _ in 0..*index {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Seek { steps: rest })?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// A name in JSON: a text, or a whole number of at least 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct JsonName(pub String);

impl<'de> Deserialize<'de> for JsonName {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = JsonName;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a whole number from 0 on")
            }

            fn visit_str<E>(self, text: &str) -> Result<JsonName, E> {
                Ok(JsonName(text.to_owned()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<JsonName, E> {
                Ok(JsonName(number.to_string()))
            }
        }
        json.deserialize_any(Name)
    }
}

/// Texts in JSON: one text, or a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct JsonTexts(pub Vec<String>);

impl<'de> Deserialize<'de> for JsonTexts {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = JsonTexts;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E>(self, text: &str) -> Result<JsonTexts, E> {
                Ok(JsonTexts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<JsonTexts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = list.next_element()? {
                    texts.push(text);
                }
                Ok(JsonTexts(texts))
            }
        }
        json.deserialize_any(Texts)
    }
}

#[cfg(test)]
mod tests;
