//! The loop that serves a stream of requests, step by step.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::Context;
use pagedraft::session::{Request, RequestId, RequestOutput, Session};
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::Recorder;
use pagedraft_workloads::replay::{
    EndedRequest, Incoming, Output, PlannedRequest, RequestLine, RowReport, StepReport, Ticket,
};

use super::before::Before;
use super::clock::Clock;
use super::observe::{LiveStep, Observe};
use super::seats::Seats;
use crate::cli::interrupt;
use pagedraft_workloads::trace::PoolCounts;

/// How long an engine without work sleeps before it checks for Ctrl-C.
const IDLE: Duration = Duration::from_millis(20);
/// The most requests that are accepted between two steps. Requests that all come at once must not keep the
/// engine from its steps.
const AT_ONCE: usize = 1024;
/// How long a free seat waits for a request that has no arrival time. Its prompt may not be ready.
const HAND_OVER: Duration = Duration::from_micros(200);

/// The result of asking for the next record.
enum Fetched {
    /// It is there.
    Next,
    /// It was done before the run was stopped.
    Done,
    NotReady,
    NoMore,
}

/// An engine that serves a stream of requests.
pub(super) struct Live<'a> {
    session: &'a mut Session,
    recorder: &'a mut Recorder,
    observer: &'a mut dyn Observe,
    prepared: Receiver<Result<Incoming, DatasetError>>,
    before: &'a Before,
    /// What a plain run generated for each request, which synthetic drafts need.
    recorded: &'a HashMap<u64, Arc<[u32]>>,
    clock: Clock,
    max_concurrency: Option<u32>,
    /// The seats, if the number of requests in flight is limited.
    seats: Option<Seats>,
    /// The next record, if its time has not come or it has no seat.
    next: Option<Incoming>,
    /// Whether the next request is sent as soon as there is a seat.
    closed: bool,
    /// Whether the next request is likely to be ready soon: since a seat was last freed, no wait for one
    /// has failed.
    hopes: bool,
    /// Whether the engine has been idle since the last step.
    waited: bool,
    in_flight: HashMap<RequestId, Ticket>,
    /// The names of requests in flight that had been sent before the run was stopped.
    resumed: HashSet<String>,
    /// The time from which the next step's time counts.
    since_ns: u64,
    idle_ns: u64,
    woke_ns: Option<u64>,
    taken: u32,
    report: StepReport,
    ended: Vec<RequestLine>,
}

impl<'a> Live<'a> {
    pub(super) fn new(
        session: &'a mut Session,
        recorder: &'a mut Recorder,
        observer: &'a mut dyn Observe,
        prepared: Receiver<Result<Incoming, DatasetError>>,
        before: &'a Before,
        recorded: &'a HashMap<u64, Arc<[u32]>>,
        max_concurrency: Option<u32>,
    ) -> Self {
        let seats = max_concurrency.map(|count| Seats::new(count, before.end_ns));
        Self {
            session,
            recorder,
            observer,
            prepared,
            before,
            recorded,
            clock: Clock::start(before.end_ns),
            max_concurrency,
            closed: seats.is_some(),
            hopes: true,
            waited: false,
            seats,
            next: None,
            in_flight: HashMap::new(),
            resumed: HashSet::new(),
            since_ns: before.end_ns,
            idle_ns: 0,
            woke_ns: None,
            taken: 0,
            report: StepReport::default(),
            ended: Vec::new(),
        }
    }

    /// Serves requests until no more come. Returns `false` if Ctrl-C ended it.
    pub(super) fn run(mut self) -> anyhow::Result<bool> {
        // The run begins when there is something to send.
        let mut open = true;
        while open && self.next.is_none() && !interrupt::pressed() {
            open = !matches!(self.fetch(IDLE)?, Fetched::NoMore);
        }
        self.clock = Clock::start(self.before.end_ns);
        while !interrupt::pressed() {
            // This is between steps, when requests that have come are accepted.
            open = open && self.take_in()?;
            if self.session.has_unfinished() {
                self.step()?;
            } else if !open {
                return Ok(true);
            }
        }
        let running: Vec<RequestId> = self.in_flight.drain().map(|(id, _)| id).collect();
        interrupt::forget(self.session, &running)?;
        Ok(false)
    }

    /// Accepts requests whose time has come and for which there is a seat. It sleeps for a moment if there
    /// is nothing to run. Returns `false` if no more will come.
    fn take_in(&mut self) -> anyhow::Result<bool> {
        let mut hoping = None;
        for _ in 0..AT_ONCE {
            if interrupt::pressed() || self.seats.as_ref().is_some_and(Seats::are_taken) {
                break;
            }
            if self.next.is_none() {
                let patience = match self.session.has_unfinished() {
                    false => IDLE,
                    true if self.closed && self.hopes => {
                        HAND_OVER.saturating_sub(hoping.get_or_insert_with(Instant::now).elapsed())
                    }
                    true => Duration::ZERO,
                };
                match self.fetch(patience)? {
                    Fetched::Next => {}
                    Fetched::Done => continue,
                    Fetched::NotReady => {
                        self.hopes = false;
                        break;
                    }
                    Fetched::NoMore => return Ok(false),
                }
            }
            match self.next.take() {
                Some(Incoming::Skipped(skipped)) => {
                    let line = self.recorder.skip(&skipped);
                    self.observer.line(&line)?;
                }
                Some(Incoming::Request(request)) if self.may_go(&request) => self.take(request)?,
                not_yet => {
                    self.next = not_yet;
                    break;
                }
            }
        }
        Ok(true)
    }

    /// Gets the next record, if it is ready within `patience`.
    fn fetch(&mut self, patience: Duration) -> anyhow::Result<Fetched> {
        let idle = !self.session.has_unfinished();
        match self.prepared.try_recv() {
            Ok(incoming) => return self.fetched(incoming),
            Err(TryRecvError::Disconnected) => return Ok(Fetched::NoMore),
            Err(TryRecvError::Empty) => self.waited |= idle,
        }
        match self.prepared.recv_timeout(patience) {
            Ok(incoming) => self.fetched(incoming),
            Err(RecvTimeoutError::Timeout) => Ok(Fetched::NotReady),
            Err(RecvTimeoutError::Disconnected) => Ok(Fetched::NoMore),
        }
    }

    fn fetched(&mut self, incoming: Result<Incoming, DatasetError>) -> anyhow::Result<Fetched> {
        let incoming = incoming.map_err(|error| pagedraft::exit::usage(error.into()))?;
        if self.before.has(&incoming) {
            return Ok(Fetched::Done);
        }
        self.next = Some(incoming);
        Ok(Fetched::Next)
    }

    /// Whether a request's time has come. An engine without work sleeps until then, or for a moment.
    fn may_go(&mut self, request: &PlannedRequest) -> bool {
        let Some(at) = request.arrival_ns else { return true };
        let left = Duration::from_nanos(at.saturating_sub(self.clock.now_ns()));
        if !left.is_zero() && !self.session.has_unfinished() {
            self.waited = true;
            std::thread::sleep(left.min(IDLE));
        }
        left.is_zero() || self.clock.now_ns() >= at
    }

    /// Accepts a request.
    fn take(&mut self, request: PlannedRequest) -> anyhow::Result<()> {
        self.closed = self.seats.is_some() && request.arrival_ns.is_none();
        // A request without an arrival time should have been sent when a seat became free.
        let free_ns = self.seats.as_mut().and_then(Seats::take).unwrap_or(self.before.end_ns);
        let intended_ns = request.arrival_ns.unwrap_or(free_ns);
        let now_ns = self.clock.now_ns();
        if std::mem::take(&mut self.waited) && !self.session.has_unfinished() {
            self.idle_ns = now_ns.saturating_sub(self.since_ns).max(1);
            self.since_ns = now_ns;
            self.woke_ns = request.arrival_ns.map(|at| now_ns.saturating_sub(at));
        }
        if self.before.sent(&request, self.max_concurrency) {
            self.resumed.insert(request.index.to_string());
        }
        let ticket = self.recorder.send(&request, intended_ns, now_ns);
        self.submit(request, ticket)
    }

    /// Submits a request. If the engine refuses it, it becomes a line, and the run goes on.
    fn submit(&mut self, planned: PlannedRequest, ticket: Ticket) -> anyhow::Result<()> {
        let mut request = Request::new(planned.index.to_string(), planned.prompt, planned.max_tokens);
        request.ignore_eos = !planned.until_stop;
        request.recorded.extend(self.recorded.get(&planned.index).cloned());
        match self.session.submit(request) {
            Ok(ids) => {
                self.taken += 1;
                self.in_flight.extend(ids.into_iter().map(|id| (id, ticket)));
            }
            Err(error) => {
                let now_ns = self.clock.now_ns();
                let line = self.recorder.fail(ticket, now_ns, format!("{error:#}"));
                self.tell(line)?;
                self.free_seat(now_ns);
            }
        }
        Ok(())
    }

    fn step(&mut self) -> anyhow::Result<()> {
        self.report.start_ns = self.clock.now_ns();
        let Some(step) = interrupt::step(self.session)? else { return Ok(()) };
        self.report.end_ns = self.clock.now_ns();
        self.report.step = step.step;
        self.report.prefill_tokens = step.prefill_tokens as u32;
        self.report.decode_rows = step.decode_rows as u32;
        self.report.preempted = step.preempted as u32;
        self.report.running = step.running as u32;
        self.report.waiting = step.waiting as u32;
        self.report.replayed = step.replayed;
        let several = self.session.info().kv_groups > 1;
        let counts = if several { PoolCounts::with_bytes } else { PoolCounts::from };
        (self.report.pool_during, self.report.pool) = (counts(step.pool_during), counts(step.pool));
        self.report.rows.clear();
        self.report.ended.clear();
        for row in self.session.step_rows() {
            let ticket = *self.in_flight.get(&row.id).context("a step ran a request that was not sent")?;
            self.report.rows.push(RowReport {
                ticket,
                new_tokens: row.new_tokens as u16,
                num_drafts: row.num_drafts,
                num_accepted: row.num_accepted,
                context: row.context,
                cached_tokens: row.num_cached_tokens,
            });
        }
        for news in step.emitted.iter().filter(|news| news.finish.is_some()) {
            let ticket = self.in_flight.remove(&news.id).context("a request ended that was not sent")?;
            let output = self.session.take_output(news.id).context("a request ended without output")?;
            self.report.ended.extend(ended(ticket, output));
            self.free_seat(self.report.end_ns);
        }
        self.recorder.step(&self.report, &mut self.ended);
        for line in std::mem::take(&mut self.ended) {
            self.tell(line)?;
        }
        drop(step.emitted);
        let told = LiveStep {
            session: self.session,
            report: &self.report,
            stages: step.stages,
            took_ns: self.clock.now_ns().saturating_sub(self.since_ns),
            idle_ns: std::mem::take(&mut self.idle_ns),
            woke_ns: self.woke_ns.take(),
            taken: std::mem::take(&mut self.taken),
            done: self.recorder.done(),
        };
        self.observer.step(&told);
        self.since_ns = self.clock.now_ns();
        Ok(())
    }

    fn free_seat(&mut self, now_ns: u64) {
        if let Some(seats) = &mut self.seats {
            seats.give_back(now_ns);
            self.hopes = true;
        }
    }

    fn tell(&mut self, mut line: RequestLine) -> anyhow::Result<()> {
        line.resumed = self.resumed.remove(&line.request_id);
        self.observer.line(&line)
    }
}

/// What the recorder is told about the end of a request.
fn ended(ticket: Ticket, output: RequestOutput) -> Option<EndedRequest> {
    Some(EndedRequest {
        ticket,
        reason: output.finish_reason?,
        error: output.error,
        cached_tokens: output.num_cached_tokens,
        preemptions: output.num_preemptions,
        blocks_held: output.num_blocks,
        prefix_blocks: output.prefix_blocks.iter().map(|block| block.0).collect(),
        output: Some(Output { token_ids: output.token_ids, text: output.text }),
    })
}
