//! A stream of requests, and the threads that serve it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use pagedraft::session::Session;
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::Recorder;
use pagedraft_workloads::replay::Incoming;

use super::before::Before;
use super::observe::Observe;
use super::run::Live;

/// The most requests that are prepared before their time.
pub const AHEAD: usize = 256;

/// Requests to serve.
pub struct Stream<'a, I> {
    pub source: I,
    /// What was done before the run was stopped.
    pub before: &'a Before,
    /// What a plain run generated for each request, which synthetic drafts need.
    pub recorded: &'a HashMap<u64, Arc<[u32]>>,
    /// The most requests in flight.
    pub max_concurrency: Option<u32>,
}

impl<I: Iterator<Item = Result<Incoming, DatasetError>> + Send> Stream<'_, I> {
    /// Serves the requests to their end. Returns `false` if Ctrl-C ended it. They are read and tokenised on
    /// a thread of their own.
    pub fn serve(
        self,
        session: &mut Session,
        recorder: &mut Recorder,
        observer: &mut dyn Observe,
    ) -> anyhow::Result<bool> {
        let Self { source, before, recorded, max_concurrency } = self;
        std::thread::scope(|scope| {
            let (ahead, prepared) = sync_channel(AHEAD);
            scope.spawn(move || prepare(source, &ahead));
            Live::new(session, recorder, observer, prepared, before, recorded, max_concurrency).run()
        })
    }
}

/// Reads and tokenises as far ahead as the channel `prepared` has room, until nobody receives any more.
pub fn prepare<T>(source: impl Iterator<Item = T>, prepared: &SyncSender<T>) {
    for incoming in source {
        if prepared.send(incoming).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use pagedraft_workloads::dataset::SkipReason;
    use pagedraft_workloads::replay::SkippedRequest;

    use super::*;

    #[test]
    fn an_engine_that_panics_ends_the_thread_that_prepares() {
        let skipped = || -> Result<Incoming, DatasetError> {
            Ok(Incoming::Skipped(SkippedRequest {
                index: 0,
                source_id: None,
                category: None,
                arrival_ns: None,
                prompt_tokens: None,
                reason: SkipReason::EmptyPrompt,
            }))
        };
        let ended = catch_unwind(AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                let (ahead, prepared) = sync_channel(1);
                scope.spawn(move || prepare(std::iter::repeat_with(skipped), &ahead));
                assert!(prepared.recv().is_ok());
                panic!("the engine's fault");
            })
        }));
        assert!(ended.is_err());
    }
}
