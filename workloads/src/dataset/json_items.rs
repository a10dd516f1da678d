//! The JSON objects of a file, which has one per line or is one array of them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::likeness::{missing, shown, workload_with};
use super::text_file::{MAX_LINE, TextFile, not_utf8, too_long};
use super::{DatasetError, quantity};

/// A file of JSON objects. One object at a time is in memory.
pub(super) struct JsonItems {
    file: TextFile,
    workload: &'static str,
    shape: Shape,
    buffer: Vec<u8>,
}

enum Shape {
    Lines,
    /// The file is an array, of which this many elements have been read.
    Array(u64),
    /// The file is an array that has been read to its end.
    Over,
}

/// One JSON object of the file.
pub(super) struct JsonItem {
    map: Map<String, Value>,
    path: PathBuf,
    workload: &'static str,
    /// The line of the file that it begins in, from 1.
    pub(super) line: u64,
    /// The object's number in an array, counted from 1.
    element: Option<u64>,
}

impl JsonItems {
    /// Opens a file for the workload `workload`. Its first character tells whether it is an array or lines.
    pub(super) fn open(path: &Path, workload: &'static str) -> Result<Self, DatasetError> {
        let mut file = TextFile::open(path)?;
        skip_space(&mut file)?;
        let shape = match file.peek()? {
            None => return Err(file.file_error("is empty; expected JSON")),
            Some(b'[') => {
                file.bump();
                Shape::Array(0)
            }
            Some(b'{') => Shape::Lines,
            Some(_) => {
                let what = match file.next_line()? {
                    Some((_, text)) => csv_instead(text),
                    None => "is empty; expected JSON".into(),
                };
                return Err(file.file_error(what));
            }
        };
        Ok(Self { file, workload, shape, buffer: Vec::new() })
    }

    /// Reads the next object.
    pub(super) fn next_item(&mut self) -> Result<Option<JsonItem>, DatasetError> {
        let (path, workload) = (self.file.path().to_path_buf(), self.workload);
        let number = match self.shape {
            Shape::Over => return Ok(None),
            Shape::Lines => {
                let Some((line, text)) = self.file.next_full_line()? else { return Ok(None) };
                let map =
                    object(text).map_err(|what| DatasetError::Line { path: path.clone(), line, what })?;
                return Ok(Some(JsonItem { map, path, workload, line, element: None }));
            }
            Shape::Array(read) => read + 1,
        };
        let Some(begins) = self.next_element(number)? else { return Ok(None) };
        let map = std::str::from_utf8(&self.buffer).map_err(|e| not_utf8(&self.buffer, e)).and_then(object);
        let map = map.map_err(|what| self.element_error(number, begins, &what))?;
        self.shape = Shape::Array(number);
        Ok(Some(JsonItem { map, path, workload, line: begins, element: Some(number) }))
    }

    /// Takes element number `number` of the array into the buffer. Returns the line in which it begins.
    fn next_element(&mut self, number: u64) -> Result<Option<u64>, DatasetError> {
        skip_space(&mut self.file)?;
        let mut next = self.file.peek()?;
        if number > 1 && next == Some(b',') {
            self.file.bump();
            skip_space(&mut self.file)?;
            next = self.file.peek()?;
        } else if next == Some(b']') {
            self.file.bump();
            skip_space(&mut self.file)?;
            if self.file.peek()?.is_some() {
                let line = self.file.line();
                return Err(self.element_error(number, line, "there is more behind the array's end"));
            }
            self.shape = Shape::Over;
            return Ok(None);
        } else if number > 1 && next.is_some() {
            return Err(self.element_error(
                number,
                self.file.line(),
                "expected a comma or the array's end before it",
            ));
        }
        let begins = self.file.line();
        match next {
            Some(b'{') => self.take_object(number, begins).map(|()| Some(begins)),
            None => Err(self.element_error(number, begins, "the array is cut here: its `]` is missing")),
            Some(byte) => {
                let what = format!("expected an object, found {}", shown(&char::from(byte).to_string()));
                Err(self.element_error(number, begins, &what))
            }
        }
    }

    /// Takes the bytes up to the brace that closes the first one. It does not check that they are JSON.
    fn take_object(&mut self, number: u64, begins: u64) -> Result<(), DatasetError> {
        self.buffer.clear();
        let (mut depth, mut in_string, mut escaped, mut over) = (0_u64, false, false, false);
        while !over {
            let bytes = self.file.ahead()?;
            if bytes.is_empty() {
                return Err(self.element_error(number, begins, "the file is cut in the middle of it"));
            }
            let (mut taken, mut newlines) = (0, 0);
            for &byte in bytes {
                taken += 1;
                newlines += u64::from(byte == b'\n');
                if in_string {
                    in_string = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' => depth += 1,
                    b'}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    over = true;
                    break;
                }
            }
            if self.buffer.len() + taken > MAX_LINE {
                return Err(self.element_error(number, begins, &too_long("element")));
            }
            self.buffer.extend_from_slice(&bytes[..taken]);
            self.file.advance(taken, newlines);
        }
        Ok(())
    }

    fn element_error(&self, number: u64, begins: u64, what: &str) -> DatasetError {
        self.file.error(begins, in_element(number, what))
    }
}

impl JsonItem {
    /// An error that says what is wrong with this object.
    pub(super) fn error(&self, what: &str) -> DatasetError {
        let what = self.element.map_or_else(|| what.to_owned(), |number| in_element(number, what));
        DatasetError::Line { path: self.path.clone(), line: self.line, what }
    }

    /// Whether the object has this field with a value other than `null`.
    pub(super) fn has(&self, field: &str) -> bool {
        self.find(field).is_some()
    }

    /// A field that may be missing; `null` counts as missing.
    pub(super) fn find(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub(super) fn field(&self, field: &str) -> Result<&Value, DatasetError> {
        self.find(field).ok_or_else(|| {
            let found: Vec<&str> = self.map.keys().map(String::as_str).collect();
            self.error(&missing("field", field, &found, self.workload))
        })
    }

    /// A field that should be `expected`. The error distinguishes a field that is `null` from one that is
    /// missing.
    fn value(&self, field: &str, expected: &str) -> Result<&Value, DatasetError> {
        match self.map.get(field) {
            Some(null @ Value::Null) => Err(self.wrong(field, null, expected)),
            _ => self.field(field),
        }
    }

    /// A field that is a text.
    pub(super) fn text(&self, field: &str) -> Result<&str, DatasetError> {
        let value = self.value(field, "a text")?;
        value.as_str().ok_or_else(|| self.wrong(field, value, "a text"))
    }

    /// A field that is a text or missing.
    pub(super) fn optional_text(&self, field: &str) -> Result<Option<&str>, DatasetError> {
        self.has(field).then(|| self.text(field)).transpose()
    }

    /// A field that is a name: a text or a whole number.
    pub(super) fn name(&self, field: &str) -> Option<String> {
        match self.find(field)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// A field that is a list.
    pub(super) fn list(&self, field: &str) -> Result<&[Value], DatasetError> {
        let value = self.value(field, "a list")?;
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong(field, value, "a list"))
    }

    /// A field that is a list of texts.
    pub(super) fn texts(&self, field: &str) -> Result<Vec<String>, DatasetError> {
        let text = |value: &Value| {
            value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(field, value, "a list of texts"))
        };
        self.list(field)?.iter().map(text).collect()
    }

    /// A field that is a list of whole numbers of at least 0.
    pub(super) fn numbers(&self, field: &str) -> Result<Vec<u64>, DatasetError> {
        let number = |value: &Value| {
            value.as_u64().ok_or_else(|| self.wrong(field, value, "a list of whole numbers, none negative"))
        };
        self.list(field)?.iter().map(number).collect()
    }

    /// A field that is a number of tokens.
    pub(super) fn tokens(&self, field: &str) -> Result<u32, DatasetError> {
        let value = self.value(field, "a number of tokens")?;
        let number = value.as_f64().ok_or_else(|| self.wrong(field, value, "a number of tokens"))?;
        quantity::bounded(number, &value.to_string())
            .map_err(|what| self.error(&format!("field `{field}` {what}")))
    }

    /// A field that is a time in units of `unit` nanoseconds. Returns nanoseconds.
    pub(super) fn time(&self, field: &str, unit: i64) -> Result<i64, DatasetError> {
        let value = self.value(field, "a time")?;
        let exact = value.as_i64().and_then(|n| n.checked_mul(unit)).filter(|n| (0..1 << 62).contains(n));
        if let Some(time) = exact {
            return Ok(time);
        }
        let number = value.as_f64().ok_or_else(|| self.wrong(field, value, "a time"))?;
        quantity::nanoseconds(number, unit, &value.to_string())
            .map_err(|what| self.error(&format!("field `{field}` {what}")))
    }

    /// An error that says that a field is not what it should be.
    pub(super) fn wrong(&self, field: &str, value: &Value, expected: &str) -> DatasetError {
        let found = match value {
            Value::Null => "null".into(),
            Value::Bool(_) | Value::Number(_) => shown(&value.to_string()),
            Value::String(text) => format!("the text {}", shown(text)),
            Value::Array(_) => "a list".into(),
            Value::Object(_) => "an object".into(),
        };
        self.error(&format!("field `{field}`: expected {expected}, found {found}"))
    }
}

fn in_element(number: u64, what: &str) -> String {
    format!("element {number}: {what}")
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    let parsed = serde_json::from_str(text);
    // Only a line that would be refused is looked at again, so that other lines cost nothing.
    let parsed = match parsed {
        Err(e) => match without_lone_surrogates(text) {
            Some(mended) => serde_json::from_str(&mended),
            None => Err(e),
        },
        read => read,
    };
    parsed.map_err(|e| {
        let whole = e.to_string();
        // serde counts lines from where the object begins. In a file with one object per line that number
        // could be mistaken for the file's line, so serde's words for it are cut off.
        let what = whole.split(" at line ").next().unwrap_or_default();
        let line = if e.line() > 1 { format!("line {} of it, ", e.line()) } else { String::new() };
        let cut = if e.is_eof() { ": is the line cut?" } else { "" };
        format!("is not a JSON object: {what} at {line}column {}{cut}", e.column())
    })
}

/// The text with U+FFFD in place of escaped surrogates that are not a pair, which Python writes if a text
/// was cut inside an emoji. The length stays the same, so that positions in the text stay valid. `None` if
/// there are no such escapes. Backslashes are looked for anywhere, because in JSON they occur only in
/// strings.
fn without_lone_surrogates(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let surrogate = |at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        let code = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        (0xD800..0xE000).contains(&code).then_some(code)
    };
    let (mut mended, mut at, mut found) = (String::with_capacity(text.len()), 0, false);
    while let Some(next) = text.get(at..).and_then(|rest| rest.find('\\')) {
        mended.push_str(&text[at..at + next]);
        at += next;
        let taken = match (surrogate(at), surrogate(at + 6)) {
            (Some(0xD800..0xDC00), Some(0xDC00..)) => 12,
            (Some(_), _) => {
                found = true;
                mended.push_str("\\ufffd");
                at += 6;
                continue;
            }
            // If the text is not JSON, the escaped character may have several bytes.
            (None, _) => 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        };
        mended.push_str(&text[at..at + taken]);
        at += taken;
    }
    mended.push_str(&text[at..]);
    found.then_some(mended)
}

/// Skips what counts as white space in JSON.
fn skip_space(file: &mut TextFile) -> Result<(), DatasetError> {
    loop {
        let bytes = file.ahead()?;
        let space = bytes.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).count();
        let newlines = bytes[..space].iter().filter(|&&b| b == b'\n').count() as u64;
        let over = space < bytes.len() || space == 0;
        file.advance(space, newlines);
        if over {
            return Ok(());
        }
    }
}

/// The message for a file that should be JSON and whose first line is this one.
fn csv_instead(line: &str) -> String {
    let names: Vec<&str> = line.split(',').map(str::trim).collect();
    let hint = workload_with(&names).map(|kind| format!(": is it --workload {kind}?")).unwrap_or_default();
    format!("is not JSON: it begins with {}{hint}", shown(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_surrogates_become_replacement_characters_and_pairs_stay() {
        for (text, mended) in [
            (r#"{"a": "cut \ud83d"}"#, "cut \u{fffd}"),
            (
                r#"{"a": "\ud83d\ude00 \uDE00\ud83D\u0041\ud83d\ud83d\ude00"}"#,
                "😀 \u{fffd}\u{fffd}A\u{fffd}😀",
            ),
            (r#"{"a": "\\ud83d \\\ud83d \\\\ud83d"}"#, "\\ud83d \\\u{fffd} \\\\ud83d"),
            (r#"{"a": "\ud83d\n é"}"#, "\u{fffd}\n é"),
        ] {
            assert_eq!(object(text).unwrap()["a"], mended, "{text}");
        }
        assert_eq!(without_lone_surrogates(r#"{"a": "\ud83d\ude00 \\ud83d"}"#), None);
        for broken in [r#"{"a": "\ud83d"#, r#"{"a": "\ud83"#, "{\"a\": \"\\ud83d\\é", "\\"] {
            assert!(object(broken).unwrap_err().starts_with("is not a JSON object"), "{broken}");
        }
    }
}
