//! The directory of a run: `config.json`, `requests.jsonl`, `trace_steps.jsonl`, `summary.json`, `report.html`.
//!
//! However a run is stopped, it leaves files of whole lines. [`RunDirectory::resume`] appends to them.

/// The name of the file with one line per request.
pub const REQUESTS_FILE: &str = "requests.jsonl";
/// The name of the report's page.
pub const REPORT_FILE: &str = "report.html";

mod config;
mod convert;
mod directory;
mod frames;
mod leftovers;
mod lines;
#[cfg(feature = "parquet")]
mod parquet;
mod reader;
mod sink;

pub use convert::convert_lines;
pub use directory::RunDirectory;
pub(crate) use directory::{check_config, lock};
pub(crate) use leftovers::Leftovers;
#[cfg(test)]
pub(crate) use lines::FLUSH_EVERY;
pub use lines::{Begin, LineFormat, LineWriter};
pub use reader::LineReader;
pub(crate) use reader::LineSource;
