//! The rows of a csv file, read by the names of its columns.

use std::path::Path;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};

use super::likeness::{missing, workload_with};
use super::text_file::TextFile;
use super::{DatasetError, quantity};

/// A csv file whose header has been read. Every line is a row: a quoted field must end in its own line, so
/// that a stray quote can't swallow the rest of the file.
pub(super) struct CsvRows {
    file: TextFile,
    fields: Fields,
    columns: usize,
}

/// A column's place in the header, with its name for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    name: &'static str,
    place: usize,
}

/// A row.
pub(super) struct Row<'a> {
    fields: &'a Fields,
    path: &'a Path,
    pub(super) line: u64,
}

impl CsvRows {
    /// Opens a file for the workload `workload`, and reads its header.
    pub(super) fn open(path: &Path, workload: &'static str) -> Result<Header, DatasetError> {
        let mut file = TextFile::open(path)?;
        let Some((line, text)) = file.next_full_line()? else {
            return Err(file.file_error("is empty; expected a csv header"));
        };
        if let Some(what) = json_instead(text) {
            return Err(file.file_error(what));
        }
        let mut fields = Fields::default();
        if let Err(what) = fields.split(text) {
            return Err(file.error(line, what));
        }
        let columns = fields.ends.len();
        Ok(Header { rows: Self { file, fields, columns }, workload })
    }

    /// The next row.
    pub(super) fn next_row(&mut self) -> Result<Option<Row<'_>>, DatasetError> {
        let Some((line, text)) = self.file.next_full_line()? else { return Ok(None) };
        let split = self.fields.split(text);
        let found = self.fields.ends.len();
        if let Err(what) = split {
            return Err(self.file.error(line, what));
        }
        if found != self.columns {
            let cut = if found < self.columns { ": is the line cut?" } else { "" };
            let what = format!("has {found} fields, but the header has {}{cut}", self.columns);
            return Err(self.file.error(line, what));
        }
        Ok(Some(Row { fields: &self.fields, path: self.file.path(), line }))
    }
}

/// A csv file of which only the header has been read.
pub(super) struct Header {
    rows: CsvRows,
    workload: &'static str,
}

impl Header {
    /// Finds a column that may be missing.
    pub(super) fn find(&self, name: &'static str) -> Result<Option<Column>, DatasetError> {
        let mut places = (0..self.rows.columns).filter(|&i| self.rows.fields.get(i) == name);
        let Some(place) = places.next() else { return Ok(None) };
        match places.next() {
            None => Ok(Some(Column { name, place })),
            Some(_) => {
                let what = format!("has two columns `{name}`: which one is meant? Rename or remove one");
                Err(self.rows.file.file_error(what))
            }
        }
    }

    /// Finds a column that must be there.
    pub(super) fn column(&self, name: &'static str) -> Result<Column, DatasetError> {
        self.find(name)?.ok_or_else(|| {
            let found: Vec<&str> = (0..self.rows.columns).map(|i| self.rows.fields.get(i)).collect();
            self.rows.file.file_error(missing("column", name, &found, self.workload))
        })
    }

    /// The rows.
    pub(super) fn rows(self) -> CsvRows {
        self.rows
    }
}

impl Row<'_> {
    /// A field, without spaces around it.
    pub(super) fn text(&self, column: Column) -> &str {
        self.fields.get(column.place)
    }

    /// A field with a number of tokens.
    pub(super) fn tokens(&self, column: Column) -> Result<u32, DatasetError> {
        quantity::tokens(self.text(column)).map_err(|what| self.wrong(column, &what))
    }

    /// A field with a time in seconds. Returns nanoseconds.
    pub(super) fn seconds(&self, column: Column) -> Result<i64, DatasetError> {
        quantity::seconds(self.text(column)).map_err(|what| self.wrong(column, &what))
    }

    /// An error that says what is wrong with a field.
    pub(super) fn wrong(&self, column: Column, what: &str) -> DatasetError {
        let what = format!("column `{}` {what}", column.name);
        DatasetError::Line { path: self.path.to_path_buf(), line: self.line, what }
    }
}

/// The fields of a line. One buffer serves all lines.
struct Fields {
    reader: Reader,
    text: Vec<u8>,
    /// Where each field ends in `text`; the next field begins there.
    ends: Vec<usize>,
}

impl Default for Fields {
    fn default() -> Self {
        // Each line is read by itself, so a carriage return must not end a row.
        let reader = ReaderBuilder::new().terminator(Terminator::Any(b'\n')).build();
        Self { reader, text: Vec::new(), ends: Vec::new() }
    }
}

impl Fields {
    fn get(&self, i: usize) -> &str {
        let start = i.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let field = self.ends.get(i).and_then(|&end| self.text.get(start..end)).unwrap_or_default();
        // Only quotes and commas were removed from valid UTF-8, so the rest is valid UTF-8.
        std::str::from_utf8(field).unwrap_or_default().trim()
    }

    /// Splits a line as RFC 4180 says: fields in double quotes may hold commas, and doubled quotes stand
    /// for one. The reader sees only this line, so a quote that is not closed in it is an error.
    fn split(&mut self, line: &str) -> Result<(), String> {
        self.reader.reset();
        self.text.resize(line.len() + 1, 0);
        self.ends.resize(self.ends.capacity().max(16), 0);
        // The reader would skip an empty line.
        if line.is_empty() {
            self.ends.clear();
            self.ends.push(0);
            return Ok(());
        }
        let (mut written, mut fields) = (0, 0);
        let mut rest = [line.as_bytes(), b"\n"].into_iter();
        let mut input = rest.next().unwrap_or_default();
        loop {
            let (found, read, wrote, ended) =
                self.reader.read_record(input, &mut self.text[written..], &mut self.ends[fields..]);
            input = &input[read..];
            written += wrote;
            fields += ended;
            match found {
                ReadRecordResult::InputEmpty => match rest.next() {
                    Some(next) => input = next,
                    None => {
                        let number = fields + 1;
                        return Err(format!("the quote of field {number} is not closed: is the line cut?"));
                    }
                },
                ReadRecordResult::OutputFull => self.text.resize(2 * self.text.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record | ReadRecordResult::End => break,
            }
        }
        self.ends.truncate(fields);
        Ok(())
    }
}

/// The message for a csv file whose first line looks like JSON instead of a header.
fn json_instead(line: &str) -> Option<String> {
    let text = line.trim_start();
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let names: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap_or_default();
    let names: Vec<&str> = names.keys().map(String::as_str).collect();
    let mut what = String::from("is JSON, not csv with a header");
    match workload_with(&names) {
        Some(kind) => what += &format!(": is it --workload {kind}?"),
        None => what += "; sharegpt, mooncake, ruler, longbench and spec-bench are JSON",
    }
    Some(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(line: &str) -> Result<Vec<String>, String> {
        let mut fields = Fields::default();
        fields.split(line)?;
        Ok((0..fields.ends.len()).map(|i| fields.get(i).to_owned()).collect())
    }

    #[test]
    fn quotes_hold_commas_and_doubled_quotes() {
        assert_eq!(split(r#"a, "b" ,"c,""d""",,"#).unwrap(), ["a", "\"b\"", "c,\"d\"", "", ""]);
        assert_eq!(split("").unwrap(), [""]);
        assert_eq!(split(r#""a"b"c,d"#).unwrap(), ["ab\"c", "d"]);
        assert_eq!(split("a\rb,c\r").unwrap(), ["a\rb", "c"]);
        assert_eq!(split(&"é,".repeat(99)).unwrap().len(), 100);
        assert!(split(r#"a,"b"#).unwrap_err().contains("field 2"));
        assert!(split("\"").unwrap_err().contains("field 1"));
    }

    proptest! {
        #[test]
        fn lines_split_as_the_csv_crate_splits_them(
            fields in prop::collection::vec("[a-z ,\"é]{0,6}", 1..6),
        ) {
            let mut writer = csv::WriterBuilder::new().from_writer(Vec::new());
            writer.write_record(&fields).unwrap();
            let line = String::from_utf8(writer.into_inner().unwrap()).unwrap();
            let line = line.trim_end_matches('\n');
            let mut reader = csv::ReaderBuilder::new()
                .has_headers(false)
                .trim(csv::Trim::All)
                .from_reader(line.as_bytes());
            let expected: Vec<String> =
                reader.records().next().unwrap().unwrap().iter().map(str::to_owned).collect();
            prop_assert_eq!(split(line).unwrap(), expected);
        }
    }
}
