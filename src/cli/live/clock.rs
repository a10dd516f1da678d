//! The clock of a run.

use std::time::Instant;

/// The nanoseconds since the run began. If the run is resumed, the clock goes on from where it was stopped.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    offset_ns: u64,
}

impl Clock {
    /// A clock that shows `offset_ns` now.
    pub fn start(offset_ns: u64) -> Self {
        Self { started: Instant::now(), offset_ns }
    }

    /// The nanoseconds that it shows.
    pub fn now_ns(&self) -> u64 {
        let since = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.offset_ns.saturating_add(since)
    }
}
