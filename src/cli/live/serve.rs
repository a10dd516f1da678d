//! A stream of requests, and the threads that serve it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use pagedraft::session::Session;
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::Recorder;
use pagedraft_workloads::replay::Incoming;

use super::client::{AHEAD, Before, Client, UNDER_WAY, prepare};
use super::clock::Clock;
use super::seats::Seats;
use super::{IDLE, Live, Observe};
use crate::cli::interrupt;

/// Requests to serve.
pub struct Stream<'a, I> {
    pub source: I,
    /// What was done before the run was stopped.
    pub before: &'a Before,
    /// What a plain run generated for each, for synthetic drafts.
    pub recorded: &'a HashMap<u64, Arc<[u32]>>,
    /// Requests that may be in flight.
    pub max_concurrency: Option<u32>,
}

impl<I: Iterator<Item = Result<Incoming, DatasetError>> + Send> Stream<'_, I> {
    /// Serves them to their end, client and engine each on a thread of its own; `false` when Ctrl-C ended it.
    pub fn serve(
        self,
        session: &mut Session,
        recorder: &mut Recorder,
        observer: &mut dyn Observe,
    ) -> anyhow::Result<bool> {
        let Self { source, before, recorded, max_concurrency } = self;
        let stop = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _ends = Ends { stop };
            let (ahead, prepared) = sync_channel(AHEAD);
            scope.spawn(move || prepare(source, &ahead, stop));
            // The run begins when there is something to send.
            let first = loop {
                match prepared.recv_timeout(IDLE) {
                    Ok(first) => break Some(first),
                    Err(RecvTimeoutError::Disconnected) => break None,
                    Err(RecvTimeoutError::Timeout) if interrupt::pressed() => return Ok(false),
                    Err(RecvTimeoutError::Timeout) => {}
                }
            };
            let clock = Clock::start(before.end_ns);
            let seats = max_concurrency.map(|count| Seats::new(count, before.end_ns));
            // Who waits for a seat need not be under way.
            let (send, arrivals) = sync_channel(if seats.is_some() { AHEAD } else { UNDER_WAY });
            let client = Client { clock, max_concurrency, before, stop };
            scope.spawn(move || client.run(first.into_iter().chain(prepared), &send));
            Live::new(session, recorder, observer, clock, seats, recorded).run(&arrivals)
        })
    }
}

/// Tells the other threads that the engine is done, also where it ended by a panic: the scope waits for them.
struct Ends<'a> {
    stop: &'a AtomicBool,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn an_engine_that_panics_ends_the_client_that_waits_for_a_time() {
        let (stop, clock) = (AtomicBool::new(false), Clock::start(0));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                let _ends = Ends { stop: &stop };
                scope.spawn(|| assert!(!clock.sleep_until(u64::MAX, &stop)));
                panic!("the engine's fault");
            })
        }));
        assert!(ended.is_err());
    }
}
