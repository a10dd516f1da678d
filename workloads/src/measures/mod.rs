//! What a replay is measured by.
//!
//! Latencies count from the intended arrival, so that an engine that stalls, or takes requests late, shows
//! (coordinated omission). A token's time is the end of the step that gave it.
//!
//! Of a step that gives a request several tokens (speculation) there are three readings of the inter-token latency, and all are
//! reported ([`InterToken`]). Percentiles are those of numpy (linear interpolation), as `vllm bench serve` has
//! them: exact up to 32,768 values, and from an HDR histogram of 3 significant digits where there are more. Means, deviations and
//! greatest values are exact ([`Figures`]).

mod blocks;
mod distribution;
mod figures;
mod in_flight;
mod latencies;
mod peaks;
mod recorder;
mod slo;
mod speculation;
mod summary;
mod timeline;
mod totals;

pub use blocks::{HotBlock, Tally};
pub use figures::{Figures, Latencies};
pub use latencies::InterToken;
pub use recorder::{Recorder, RecorderOptions};
pub use slo::Slo;
pub use speculation::Speculation;
pub use summary::{
    Goodput, KvUse, LatencyMs, PrefixCache, RequestRate, RunFacts, Score, Serving, Steady, Summary,
};
pub use timeline::Timeline;
