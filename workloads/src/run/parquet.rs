//! Stores lines in Apache Parquet. One column has each line's text, so that nothing is lost; other columns
//! have the fields that are most often wanted.

mod columns;
mod fields;

use std::fs::File;
use std::io::{Error, Write};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use serde_json::Value;

use self::columns::Columns;
use self::fields::{STEP, message_type};

/// The name of the column with a line's text.
const TEXT: &str = "json";
/// A row group is written when it has this many bytes of lines ...
const GROUP_BYTES: usize = if cfg!(test) { 128 << 10 } else { 8 << 20 };
/// ... or this many lines.
const GROUP_LINES: usize = 1 << 16;

fn fault(error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<Error>() {
            Ok(source) => *source,
            Err(source) => Error::other(source),
        },
        error => Error::other(error),
    }
}

/// Writes lines, one row group at a time.
pub(super) struct ParquetWriter<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: Columns,
}

impl<W: Write + Send> ParquetWriter<W> {
    pub(super) fn new(file: W) -> Result<Self, Error> {
        let schema = Arc::new(parse_message_type(&message_type(TEXT)).map_err(fault)?);
        let text = ColumnPath::new(vec![TEXT.to_owned()]);
        let properties = WriterProperties::builder()
            .set_compression(Compression::GZIP(Default::default()))
            .set_column_dictionary_enabled(text.clone(), false)
            .set_column_statistics_enabled(text, EnabledStatistics::None)
            .set_write_batch_size(128)
            .set_created_by("pagedraft".to_owned())
            .build();
        let file = SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(fault)?;
        Ok(Self { file, columns: Columns::new(&STEP) })
    }

    /// Adds a line. The inner error says what is wrong with the line.
    pub(super) fn add(&mut self, line: &[u8]) -> Result<Result<(), String>, Error> {
        let Ok(text) = std::str::from_utf8(line) else {
            return Ok(Err("is not UTF-8, which Parquet's text must be".to_owned()));
        };
        // A line that is not JSON has its text and no other values.
        let value = serde_json::from_str(text).unwrap_or(Value::Null);
        self.columns.add(&value, text);
        if self.columns.bytes() >= GROUP_BYTES || self.columns.lines() >= GROUP_LINES {
            self.write_group()?;
        }
        Ok(Ok(()))
    }

    fn write_group(&mut self) -> Result<(), Error> {
        let mut group = self.file.next_row_group().map_err(fault)?;
        let mut index = 0;
        while let Some(mut column) = group.next_column().map_err(fault)? {
            self.columns.write(index, &mut column).map_err(fault)?;
            column.close().map_err(fault)?;
            index += 1;
        }
        group.close().map_err(fault)?;
        self.columns.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), Error> {
        if self.columns.lines() > 0 {
            self.write_group()?;
        }
        self.file.close().map_err(fault)?;
        Ok(())
    }
}

/// Reads the lines of a file back that [`ParquetWriter`] made. A file of another writer may have more
/// columns or fewer, but every row must have its text, stored plainly (without a dictionary).
pub(super) struct ParquetLines {
    file: SerializedFileReader<File>,
    column: usize,
    groups: std::ops::Range<usize>,
    pages: Option<Box<dyn PageReader>>,
    /// The lines of the present page that were not given yet, each as a length in four little-endian bytes
    /// and the text. They are decoded here because the library's decoder panics on damaged pages.
    page: Bytes,
    lines: u32,
}

impl ParquetLines {
    pub(super) fn open(file: File) -> Result<Self, Error> {
        let file = caught(|| SerializedFileReader::new(file))?;
        let columns = file.metadata().file_metadata().schema_descr().columns();
        let text = columns.iter().position(|column| {
            column.path().string() == TEXT
                && column.physical_type() == parquet::basic::Type::BYTE_ARRAY
                && (column.max_def_level(), column.max_rep_level()) == (0, 0)
        });
        let Some(column) = text else {
            return Err(Error::other(format!("has no required column `{TEXT}` with the text of lines")));
        };
        let groups = 0..file.num_row_groups();
        Ok(Self { file, column, groups, pages: None, page: Bytes::new(), lines: 0 })
    }

    /// Puts the next line into `line`. Returns whether there is one.
    pub(super) fn next_line(&mut self, line: &mut Vec<u8>) -> Result<bool, Error> {
        while self.lines == 0 {
            if !self.next_page()? {
                return Ok(false);
            }
        }
        let cut = || Error::other(format!("a page of column `{TEXT}` ends within a line"));
        let (length, rest) = self.page.split_first_chunk().ok_or_else(cut)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| cut())?;
        line.extend_from_slice(rest.get(..length).ok_or_else(cut)?);
        self.page = self.page.slice(4 + length..);
        self.lines -= 1;
        Ok(true)
    }

    /// Reads the next page. Returns whether there is one.
    fn next_page(&mut self) -> Result<bool, Error> {
        let Some(pages) = &mut self.pages else {
            let Some(group) = self.groups.next() else { return Ok(false) };
            let (file, column) = (&self.file, self.column);
            self.pages = Some(caught(|| file.get_row_group(group)?.get_column_page_reader(column))?);
            return Ok(true);
        };
        let (page, lines, encoding) = match caught(|| pages.get_next_page())? {
            Some(Page::DataPage { buf, num_values, encoding, .. }) => (buf, num_values, encoding),
            Some(Page::DataPageV2 { buf, num_values, encoding, .. }) => (buf, num_values, encoding),
            Some(Page::DictionaryPage { .. }) => (Bytes::new(), 0, Encoding::PLAIN),
            None => {
                self.pages = None;
                return Ok(true);
            }
        };
        if encoding != Encoding::PLAIN {
            let what = format!(
                "column `{TEXT}` is stored as {encoding}; only PLAIN is read, as `trace export` writes it"
            );
            return Err(Error::other(what));
        }
        (self.page, self.lines) = (page, lines);
        Ok(true)
    }
}

/// Calls the library for a file that may be damaged. If it panics, the panic becomes an error.
fn caught<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, Error> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(fault),
        Err(_) => Err(Error::other("is damaged")),
    }
}
