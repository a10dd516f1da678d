//! The measures of a replay.
//!
//! Latencies count from the intended arrival, so that they show when an engine stalls or takes requests
//! late (otherwise they would suffer from coordinated omission). A token's time is the end of the step that
//! gave it.
//!
//! If a step gives a request several tokens (speculation), the inter-token latency can be read in three
//! ways, and all three are reported ([`InterToken`]). Percentiles are those of numpy (linear
//! interpolation), as in `vllm bench serve`. They are exact up to 32,768 values; with more values they come
//! from an HDR histogram of 3 significant digits. Means, deviations and greatest values are always exact
//! ([`Figures`]).

mod blocks;
mod distribution;
mod engine_use;
mod figures;
mod in_flight;
mod latencies;
mod peaks;
mod recorder;
mod slo;
mod sparse_blocks;
mod speculation;
mod summary;
mod timeline;
mod totals;

pub use blocks::{HotBlock, Tally};
pub use engine_use::{EngineUse, KvUse};
pub use figures::{Figures, Latencies};
pub use latencies::InterToken;
pub use recorder::{Recorder, RecorderOptions};
pub use slo::Slo;
pub use speculation::Speculation;
pub use summary::{
    BlockLatency, Goodput, LatencyMs, PrefixCache, RequestRate, RunFacts, Score, Serving, Steady, Summary,
};
pub use timeline::Timeline;
