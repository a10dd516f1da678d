//! The engine's thread: it takes in what arrived, makes a step, and hands out what came of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::command::{Command, Submission};
use super::delta::End;
use super::error::{StartError, SubmitError};
use super::flight::{Flight, Reader, says_something};
use super::output::Output;
use super::spans;
use super::{Limits, Shared};
use crate::session::{CacheEvent, Emitted, RequestId, Session, SessionStep};

/// The most commands that are taken in between two steps. Requests that all come at once must not keep the engine from its steps.
const AT_ONCE: usize = 1024;

/// The thread of an engine.
pub struct EngineThread(JoinHandle<Session>);

impl EngineThread {
    /// Waits until the thread has ended, which it does when nobody holds a handle or an output any more. Returns the session, whose
    /// trace can be closed.
    ///
    /// # Errors
    ///
    /// The thread panicked. The error is what it panicked with.
    pub fn join(self) -> Result<Session, EnginePanic> {
        self.0.join().map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            EnginePanic(text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default())
        })
    }
}

/// The engine's thread panicked.
#[derive(Debug, thiserror::Error)]
#[error("the engine's thread panicked: {0}")]
pub struct EnginePanic(String);

/// What the thread works with.
pub(super) struct Loop {
    session: Session,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    limits: Limits,
    /// Who is told what enters and leaves the prefix cache.
    kv_events: Option<UnboundedSender<Vec<CacheEvent>>>,
    flights: HashMap<RequestId, Flight>,
    /// Whoever waits until nothing runs. If anybody does, requests are refused.
    drains: Vec<oneshot::Sender<()>>,
    draining: bool,
}

impl Loop {
    pub fn new(
        session: Session,
        inbox: Receiver<Command>,
        shared: Arc<Shared>,
        limits: Limits,
        kv_events: Option<UnboundedSender<Vec<CacheEvent>>>,
    ) -> Self {
        Self {
            session,
            inbox,
            shared,
            limits,
            kv_events,
            flights: HashMap::new(),
            drains: Vec::new(),
            draining: false,
        }
    }

    pub fn spawn(self) -> Result<EngineThread, StartError> {
        let thread = std::thread::Builder::new().name("engine".to_owned());
        Ok(EngineThread(thread.spawn(move || self.run())?))
    }

    fn run(mut self) -> Session {
        self.note_queues();
        while self.take_in() {
            if self.session.has_unfinished() {
                self.step();
            }
        }
        self.session
    }

    /// Takes in what arrived. An engine without work sleeps until something arrives. Returns `false` if nothing will arrive any more,
    /// and nothing runs.
    fn take_in(&mut self) -> bool {
        if !self.session.has_unfinished() {
            self.note_queues();
            for drained in self.drains.drain(..) {
                let _ = drained.send(());
            }
            match self.inbox.recv() {
                Ok(command) => self.take(command),
                Err(_) => return false,
            }
        }
        for _ in 0..AT_ONCE {
            match self.inbox.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        self.note_queues();
        true
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Abort(ids) => ids.into_iter().for_each(|id| self.abort(id)),
            Command::Tables(reply) => {
                let _ = reply.send(self.session.live_tables());
            }
            Command::ResetPrefixCache(done) => {
                self.session.clear_prefix_cache();
                self.tell_kv_news();
                let _ = done.send(());
            }
            Command::Drain(drained) => {
                self.draining = true;
                self.drains.push(drained);
            }
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { request, arrived, reply, commands } = submission;
        if reply.is_closed() {
            return;
        }
        let (n, max_tokens) = (request.n, request.max_tokens);
        if let Err(refused) = self.admits() {
            let _ = reply.send(Err(refused));
            return;
        }
        let ids = match self.session.submit(request) {
            Ok(ids) => ids,
            Err(error) => {
                let _ = reply.send(Err(SubmitError::Bad(format!("{error:#}"))));
                return;
            }
        };
        {
            let mut stats = self.shared.stats.write();
            stats.request_params_n.record(f64::from(n));
            stats.request_params_max_tokens.record(f64::from(max_tokens));
        }
        // In a step each sample may have a delta.
        let (sender, deltas) = mpsc::channel(self.limits.deltas.max(1) * ids.len().max(1));
        let all: Arc<[RequestId]> = ids.as_slice().into();
        for (sample, &id) in (0..).zip(&ids) {
            let output = self.session.output(id);
            let span = output.map_or_else(Span::none, |output| spans::request(output, max_tokens));
            let flight = Flight::new(sample, Arc::clone(&all), arrived, sender.clone(), span);
            self.flights.insert(id, flight);
        }
        let _ = reply.send(Ok(Output::new(ids, deltas, commands)));
    }

    /// Whether one more request may wait.
    fn admits(&mut self) -> Result<(), SubmitError> {
        if self.draining {
            return Err(SubmitError::Draining);
        }
        let (waiting, max_queue) = (self.session.stats().waiting, self.limits.max_queue);
        if waiting >= max_queue {
            self.shared.stats.write().refused += 1;
            return Err(SubmitError::QueueFull { waiting, max_queue });
        }
        Ok(())
    }

    /// Ends a sample that nobody reads, and frees its blocks.
    fn abort(&mut self, id: RequestId) {
        let Some(flight) = self.flights.remove(&id) else { return };
        if let Err(error) = self.session.abort(id) {
            tracing::warn!(target: "pagedraft", "a request that was aborted has text that can't be decoded: {error:#}");
        }
        if let Some(output) = self.session.take_output(id) {
            flight.ended(&output, &mut self.shared.stats.write());
        }
    }

    fn step(&mut self) {
        let start = Instant::now();
        let span = spans::step().entered();
        match self.session.step() {
            Ok(step) => {
                spans::stepped(&span, &step);
                self.tell_kv_news();
                self.hand_out(step, start);
            }
            Err(error) => self.fail(&format!("{error:#}")),
        }
    }

    /// Fails the requests of a step that failed. The engine goes on with the others.
    fn fail(&mut self, why: &str) {
        let mut failed: Vec<RequestId> = self.session.planned().collect();
        if failed.is_empty() {
            // The step was not even planned. What the fault is in can't be told, and the next step would have it too.
            failed = self.flights.keys().copied().collect();
        }
        self.shared.stats.write().failed_steps += 1;
        for id in failed {
            if let Some(flight) = self.flights.get(&id) {
                flight.end(End::StepFailed(why.to_owned()));
            }
            self.abort(id);
        }
    }

    /// Hands out what a step gave its samples.
    fn hand_out(&mut self, mut step: SessionStep, start: Instant) {
        let now = Instant::now();
        for row in self.session.step_rows() {
            if let Some(flight) = self.flights.get_mut(&row.id) {
                flight.ran(start);
            }
        }
        let emitted = std::mem::take(&mut step.emitted);
        self.note_step(&step, &emitted);
        let behind: Vec<_> = emitted.into_iter().filter_map(|news| self.hand(news, now)).collect();
        for request in behind {
            self.shared.stats.write().too_slow += 1;
            request.iter().for_each(|&id| self.abort(id));
        }
    }

    /// Hands out what a step gave one sample. Returns all samples of its request if the reader is too far behind to take it.
    fn hand(&mut self, news: Emitted, now: Instant) -> Option<Arc<[RequestId]>> {
        let flight = self.flights.get_mut(&news.id)?;
        let (id, ended) = (news.id, news.finish.is_some());
        let mut stats = self.shared.stats.write();
        let output = self.session.output(id)?;
        flight.count(news.tokens.len(), output, now, &mut stats);
        if !says_something(&news) {
            return None;
        }
        let mut delta = flight.delta(news, output);
        if ended && let Some(output) = self.session.take_output(id) {
            flight.ended(&output, &mut stats);
            delta.end = Some(End::Finished(Box::new(output)));
        }
        drop(stats);
        let behind = (flight.send(delta) == Reader::IsBehind).then(|| Arc::clone(&flight.request));
        if ended {
            self.flights.remove(&id);
        }
        behind
    }

    fn tell_kv_news(&mut self) {
        let Some(told) = &self.kv_events else { return };
        let news = self.session.kv_news();
        if !news.is_empty() {
            // Whoever listened may be gone.
            let _ = told.send(news);
        }
    }

    /// Brings the gauges up to date.
    fn note_queues(&self) {
        let now = self.session.stats();
        let mut stats = self.shared.stats.write();
        (stats.running, stats.waiting, stats.pool) = (now.running, now.waiting, now.pool);
        stats.deferred = now.deferred;
    }

    fn note_step(&self, step: &SessionStep, emitted: &[Emitted]) {
        let tokens: usize = emitted.iter().map(|news| news.tokens.len()).sum();
        let mut stats = self.shared.stats.write();
        stats.steps += 1;
        stats.replayed_steps += u64::from(step.replayed);
        stats.preemptions += step.preempted as u64;
        stats.iteration_tokens.record((step.prefill_tokens + tokens) as f64);
        stats.step_time.record(step.elapsed.as_secs_f64());
        stats.stages.add(&step.stages);
        stats.speculation.clone_from(self.session.metrics());
        stats.drafting = self.session.draft_report();
    }
}
