//! The client of a live run: prepares requests ahead, and sends each when its time has come, whatever the engine does.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender};

use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::replay::{Incoming, PlannedRequest, SkippedRequest};

use super::clock::Clock;
use super::seats::Seats;

/// Requests that are prepared before their time.
pub const AHEAD: usize = 256;

/// What the engine is handed.
#[derive(Debug)]
pub enum Sent {
    /// A request, and when.
    Request {
        request: PlannedRequest,
        /// When it should have been sent.
        intended_ns: u64,
        /// When it was.
        sent_ns: u64,
        /// Whether it had been sent before the run was stopped.
        resumed: bool,
    },
    /// A record that is not run.
    Skipped(SkippedRequest),
    /// The dataset can't be read on.
    Broken(DatasetError),
}

/// What was done before the run was stopped.
#[derive(Debug, Default)]
pub struct Before {
    /// Requests that are done with.
    pub done: HashSet<u64>,
    /// When the last of them was.
    pub end_ns: u64,
}

/// Reads and tokenises, as far ahead as `prepared` takes.
pub fn prepare(
    source: impl Iterator<Item = Result<Incoming, DatasetError>>,
    prepared: &SyncSender<Result<Incoming, DatasetError>>,
) {
    for incoming in source {
        // Nobody listens any more: the run was stopped.
        if prepared.send(incoming).is_err() {
            return;
        }
    }
}

/// Who sends.
pub struct Client<'a> {
    pub clock: Clock,
    /// With a limit of concurrency.
    pub seats: Option<&'a Seats>,
    pub max_concurrency: Option<u32>,
    pub before: &'a Before,
    pub stop: &'a AtomicBool,
}

impl Client<'_> {
    /// Sends until the workload ends, or the run.
    pub fn run(&self, prepared: impl Iterator<Item = Result<Incoming, DatasetError>>, engine: &Sender<Sent>) {
        for incoming in prepared {
            let sent = match incoming {
                Err(error) => Some(Sent::Broken(error)),
                Ok(incoming) if self.is_done(&incoming) => continue,
                Ok(Incoming::Skipped(skipped)) => Some(Sent::Skipped(skipped)),
                Ok(Incoming::Request(request)) => self.wait_for(request),
            };
            let Some(sent) = sent else { return };
            if self.stop.load(Ordering::Relaxed) || engine.send(sent).is_err() {
                return;
            }
        }
    }

    fn is_done(&self, incoming: &Incoming) -> bool {
        let index = match incoming {
            Incoming::Request(request) => request.index,
            Incoming::Skipped(skipped) => skipped.index,
        };
        self.before.done.contains(&index)
    }

    /// Waits for a request's time, then for its seat; `None` when told to stop.
    fn wait_for(&self, request: PlannedRequest) -> Option<Sent> {
        let (stopped_ns, stop) = (self.before.end_ns, self.stop);
        let resumed = stopped_ns > 0 && self.was_sent(&request);
        if let Some(arrival_ns) = request.arrival_ns
            && !self.clock.sleep_until(arrival_ns, stop)
        {
            return None;
        }
        let free_ns = match self.seats {
            Some(seats) => Some(seats.take(stop)?),
            None => None,
        };
        // Without a time of its own it should have gone when there was room for it.
        let intended_ns =
            request.arrival_ns.or(free_ns).unwrap_or(0).max(stopped_ns.min(self.clock.now_ns()));
        Some(Sent::Request { request, intended_ns, sent_ns: self.clock.now_ns(), resumed })
    }

    /// Whether a request that is not done had been sent when the run was stopped.
    fn was_sent(&self, request: &PlannedRequest) -> bool {
        match (request.arrival_ns, self.max_concurrency) {
            (Some(arrival_ns), _) => arrival_ns < self.before.end_ns,
            (None, None) => true,
            (None, Some(seats)) => request.index < self.before.done.len() as u64 + u64::from(seats),
        }
    }
}
