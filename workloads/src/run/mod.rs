//! The directory of a run: `config.json`, `requests.jsonl`, `trace_steps.jsonl`, `summary.json`, `report.html`.

/// Name of the file with one line a request.
pub const REQUESTS_FILE: &str = "requests.jsonl";
/// Name of the page.
pub const REPORT_FILE: &str = "report.html";

mod directory;
mod lines;

pub use directory::{Resumed, RunDirectory};
pub use lines::{LineFormat, LineWriter};
