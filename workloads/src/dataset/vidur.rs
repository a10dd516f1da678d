//! [Vidur](https://github.com/microsoft/vidur)'s processed traces: csv files with the columns
//! `num_prefill_tokens`, `num_decode_tokens`, and in some of them `arrived_at` (seconds since the first
//! request).

use std::path::Path;

use super::csv_rows::CsvRows;
use super::records::{Records, records};
use super::trace_request::TraceRequest;
use super::{DatasetError, Prompt};

pub(super) fn read(path: &Path, keep_failed: bool) -> Result<Records, DatasetError> {
    let header = CsvRows::open(path, "vidur")?;
    let input = header.column("num_prefill_tokens")?;
    let output = header.column("num_decode_tokens")?;
    let time = header.find("arrived_at")?;
    let mut rows = header.rows();
    Ok(records(move || {
        let Some(row) = rows.next_row()? else { return Ok(None) };
        let prompt_tokens = row.tokens(input)?;
        let request = TraceRequest {
            line: row.line,
            time_ns: time.map(|time| row.seconds(time)).transpose()?,
            category: None,
            prompt: Prompt::Length(prompt_tokens),
            prompt_tokens,
            output_tokens: row.tokens(output)?,
        };
        Ok(Some(request.into_record(keep_failed)))
    }))
}
