//! [Azure's LLM inference traces](https://github.com/Azure/AzurePublicDataset): csv files with the columns
//! `TIMESTAMP` (date and time of day), `ContextTokens` and `GeneratedTokens`.

use std::path::Path;

use super::csv_rows::CsvRows;
use super::date_time::nanoseconds_since_1970;
use super::records::{Records, records};
use super::trace_request::TraceRequest;
use super::{DatasetError, Prompt};

pub(super) fn read(path: &Path, keep_failed: bool) -> Result<Records, DatasetError> {
    let header = CsvRows::open(path, "azure")?;
    let time = header.column("TIMESTAMP")?;
    let input = header.column("ContextTokens")?;
    let output = header.column("GeneratedTokens")?;
    let mut rows = header.rows();
    Ok(records(move || {
        let Some(row) = rows.next_row()? else { return Ok(None) };
        let time_ns = nanoseconds_since_1970(row.text(time)).map_err(|what| row.wrong(time, &what))?;
        let prompt_tokens = row.tokens(input)?;
        let request = TraceRequest {
            line: row.line,
            time_ns: Some(time_ns),
            category: None,
            prompt: Prompt::Length(prompt_tokens),
            prompt_tokens,
            output_tokens: row.tokens(output)?,
        };
        Ok(Some(request.into_record(keep_failed)))
    }))
}
