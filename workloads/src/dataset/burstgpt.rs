//! [BurstGPT](https://github.com/HPMLL/BurstGPT): csv files with the columns `Timestamp` (seconds, with or
//! without a fraction), `Request tokens`, `Response tokens` and `Log Type`. Later releases have more
//! columns in another order. A request that failed has 0 response tokens.

use std::path::Path;

use super::csv_rows::CsvRows;
use super::records::{Records, records};
use super::trace_request::TraceRequest;
use super::{DatasetError, Prompt};

pub(super) fn read(path: &Path, keep_failed: bool) -> Result<Records, DatasetError> {
    let header = CsvRows::open(path, "burstgpt")?;
    let time = header.column("Timestamp")?;
    let input = header.column("Request tokens")?;
    let output = header.column("Response tokens")?;
    let kind = header.find("Log Type")?;
    let mut rows = header.rows();
    Ok(records(move || {
        let Some(row) = rows.next_row()? else { return Ok(None) };
        let prompt_tokens = row.tokens(input)?;
        let request = TraceRequest {
            line: row.line,
            time_ns: Some(row.seconds(time)?),
            category: kind.map(|kind| row.text(kind)).filter(|kind| !kind.is_empty()).map(str::to_owned),
            prompt: Prompt::Length(prompt_tokens),
            prompt_tokens,
            output_tokens: row.tokens(output)?,
        };
        Ok(Some(request.into_record(keep_failed)))
    }))
}
