//! Sends a workload through an engine: requests go out on time, and each result becomes a line.

mod engine;
mod request_line;
mod source;
mod stream;

pub use engine::{EndedRequest, Output, RowReport, StepReport, Ticket};
pub use request_line::{RequestLine, Status};
pub use source::{DEFAULT_NEW_TOKENS, Incoming, PlannedRequest, SkippedRequest, Source, SourceOptions};
pub use stream::{StreamEnd, StreamFailure, TokenCount, Usage};
