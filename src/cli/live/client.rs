//! The client of a live run: prepares requests ahead, and sends each when its time has come, whatever the engine does.
//!
//! A run that is resumed keeps every intended arrival: its clock goes on where the last request ended, so that a request
//! that was lost with the engine has waited since it should have been sent. Only in a closed loop, where a request
//! should go when a seat is free, is that moment after the resume.
//!
//! Seats are the engine's: it takes a request out of the channel when it has one for it, so that one that is free after a step
//! is filled before the next.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::replay::{Incoming, PlannedRequest, SkippedRequest};

use super::clock::Clock;

/// Requests that are prepared before their time.
pub const AHEAD: usize = 256;
/// Requests that were sent and that the engine has not taken in. It takes up to 1024 before each step, so that a client
/// is held up (and its `sent_s` late, its latencies not) only by an engine that has stood still for long; and what a
/// closed file, read as fast as it goes, can pile up here has an end.
pub const UNDER_WAY: usize = 65_536;

/// What the engine is handed.
#[derive(Debug)]
pub enum Sent {
    /// A request, and when.
    Request {
        request: PlannedRequest,
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
    stop: &AtomicBool,
) {
    for incoming in source {
        // Nobody listens any more: the run was stopped.
        if stop.load(Ordering::Relaxed) || prepared.send(incoming).is_err() {
            return;
        }
    }
}

/// Who sends.
pub struct Client<'a> {
    pub clock: Clock,
    /// Requests that may be in flight.
    pub max_concurrency: Option<u32>,
    pub before: &'a Before,
    pub stop: &'a AtomicBool,
}

impl Client<'_> {
    /// Sends until the workload ends, or the run.
    pub fn run(
        &self,
        prepared: impl Iterator<Item = Result<Incoming, DatasetError>>,
        engine: &SyncSender<Sent>,
    ) {
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

    /// Waits for a request's time; `None` when told to stop.
    fn wait_for(&self, request: PlannedRequest) -> Option<Sent> {
        let resumed = self.was_sent(&request);
        if let Some(arrival_ns) = request.arrival_ns
            && !self.clock.sleep_until(arrival_ns, self.stop)
        {
            return None;
        }
        Some(Sent::Request { request, sent_ns: self.clock.now_ns(), resumed })
    }

    /// Whether a request that is not done had probably been sent when the run was stopped: its time had come, and those
    /// before it left it a seat.
    fn was_sent(&self, request: &PlannedRequest) -> bool {
        let Before { done, end_ns } = self.before;
        let due = request.arrival_ns.is_none_or(|arrival_ns| arrival_ns < *end_ns);
        let seated =
            self.max_concurrency.is_none_or(|seats| request.index < done.len() as u64 + u64::from(seats));
        *end_ns > 0 && due && seated
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn planned(index: u64, arrival_ns: Option<u64>) -> Result<Incoming, DatasetError> {
        Ok(Incoming::Request(PlannedRequest {
            index,
            source_id: None,
            category: None,
            arrival_ns,
            prompt: vec![1],
            max_tokens: 1,
            until_stop: false,
            expect: None,
        }))
    }

    /// Index, arrival, and whether it is one that is sent again, of what a client sends after a stop at 1 s with
    /// requests 0 and 2 done.
    fn sent(seats: Option<u32>, arrivals: &[Option<u64>]) -> Vec<(u64, Option<u64>, bool)> {
        let before = Before { done: HashSet::from([0, 2]), end_ns: 1_000_000_000 };
        let (stop, (send, arrived)) = (AtomicBool::new(false), sync_channel(UNDER_WAY));
        let clock = Clock::start(before.end_ns);
        let client = Client { clock, max_concurrency: seats, before: &before, stop: &stop };
        client.run((0..).zip(arrivals).map(|(index, &at)| planned(index, at)), &send);
        drop(send);
        let each = arrived.iter().map(|sent| match sent {
            Sent::Request { request, sent_ns, resumed } => {
                assert!(sent_ns >= request.arrival_ns.unwrap_or(0).max(before.end_ns));
                (request.index, request.arrival_ns, resumed)
            }
            other => panic!("{other:?}"),
        });
        each.collect()
    }

    #[test]
    fn a_resumed_open_loop_keeps_the_intended_arrivals() {
        let ms = |ms: u64| Some(ms * 1_000_000);
        let arrivals = [ms(0), ms(300), ms(400), ms(900), ms(1001), ms(1002)];
        let open = sent(None, &arrivals);
        let expected = [(1, ms(300), true), (3, ms(900), true)];
        assert_eq!(open[..2], expected);
        assert_eq!(open[2..], [(4, ms(1001), false), (5, ms(1002), false)]);
        // With one seat there had been room for none but request 1.
        assert_eq!(sent(Some(1), &arrivals)[..2], [(1, ms(300), true), (3, ms(900), false)]);
    }

    #[test]
    fn a_resumed_closed_loop_had_as_many_under_way_as_it_has_seats() {
        let each = [(1, None, true), (3, None, true), (4, None, false), (5, None, false)];
        assert_eq!(sent(Some(2), &[None; 6]), each);
    }
}
