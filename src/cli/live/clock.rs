//! Time of a run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Sleeps are cut to pieces of this length, so that a run that is stopped does not wait for its next request.
const NAP: Duration = Duration::from_millis(20);

/// Nanoseconds since the run began; a run that is resumed goes on where it was stopped.
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

    /// What it showed first.
    pub fn began_ns(&self) -> u64 {
        self.offset_ns
    }

    /// What it shows.
    pub fn now_ns(&self) -> u64 {
        let since = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.offset_ns.saturating_add(since)
    }

    /// Sleeps until it shows `ns`; `false` when it was told to stop before.
    pub fn sleep_until(&self, ns: u64, stop: &AtomicBool) -> bool {
        loop {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            // Each piece ends at the moment itself or before it: what one overshoots is not carried on.
            let left = ns.saturating_sub(self.now_ns());
            if left == 0 {
                return true;
            }
            std::thread::sleep(Duration::from_nanos(left).min(NAP));
        }
    }
}
