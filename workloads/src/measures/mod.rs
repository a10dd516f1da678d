//! What a replay is measured by.
//!
//! Latencies count from the intended arrival, so that an engine that stalls, or a client that could not send, shows
//! (coordinated omission). A token's time is the end of the step that gave it.

mod recorder;
mod summary;

pub use recorder::{Recorder, RecorderOptions};
pub use summary::Summary;

use serde::{Deserialize, Serialize};

/// Latency goals of a request, in milliseconds; all that are given must be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Time to the first token.
    pub ttft_ms: Option<f64>,
    /// Time per output token.
    pub tpot_ms: Option<f64>,
    /// End to end.
    pub e2el_ms: Option<f64>,
}
