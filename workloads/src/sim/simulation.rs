//! Runs engines on one stream of arrivals in virtual time.

use pagedraft_block_manager::Salt;

use super::client::Client;
use super::engine::Engine;
use super::event_log::EventLog;
use super::router::{Routing, RoutingOptions};
use super::{Observer, SimOptions};
use crate::Error;
use crate::dataset::DatasetError;
use crate::measures::Recorder;
use crate::replay::Incoming;

/// The result of a simulation, besides its measures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimReport {
    /// The SHA-256 of the event log in hexadecimal digits.
    pub event_log_sha256: String,
    /// When the last step ended, in nanoseconds since the run began.
    pub end_ns: u64,
    /// Whether the observer stopped it.
    pub stopped: bool,
}

/// Runs a workload to its end, or until the observer stops it: requests in flight are then left as they are, and their memory is not
/// given back before the process ends, because that may take seconds for millions of them. What is and is not as in a live replay,
/// the [module](super) says.
///
/// `recorder` records every request, and `observer` sees the results in the order of time. A request that
/// the scheduler refuses becomes a failed line. So does one that no pool of this size could hold to its
/// end, which a live engine refuses.
///
/// # Errors
///
/// The options contradict each other, the dataset can't be read on, the scheduler has a fault, or the
/// observer returns an error.
pub fn simulate(
    source: &mut dyn Iterator<Item = Result<Incoming, DatasetError>>,
    options: &SimOptions,
    recorder: &mut Recorder,
    observer: &mut dyn Observer,
) -> Result<SimReport, Error> {
    let mut run = Run::new(source, options, recorder, observer)?;
    let stopped = run.go_on()?;
    let Run { engines, log, end_ns, .. } = run;
    if stopped {
        std::mem::forget(engines);
    }
    Ok(SimReport { event_log_sha256: log.finish(), end_ns, stopped })
}

/// A simulation that is running.
struct Run<'a> {
    client: Client<'a>,
    engines: Vec<Engine>,
    routing: Routing,
    log: EventLog,
    recorder: &'a mut Recorder,
    observer: &'a mut dyn Observer,
    lines: Vec<crate::replay::RequestLine>,
    now: u64,
    end_ns: u64,
}

impl<'a> Run<'a> {
    fn new(
        source: &'a mut dyn Iterator<Item = Result<Incoming, DatasetError>>,
        options: &SimOptions,
        recorder: &'a mut Recorder,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, Error> {
        if options.replicas == 0 {
            return Err(Error::Options("--replicas 0: there is at least one engine".to_owned()));
        }
        if options.max_concurrency == Some(0) {
            return Err(Error::Options("--max-concurrency 0: no request could ever be sent".to_owned()));
        }
        options.cost.check().map_err(|what| Error::Options(format!("the cost model: {what}")))?;
        let routing = Routing::new(RoutingOptions {
            router: options.router,
            budget: options.scheduler.max_num_batched_tokens,
            block_size: options.scheduler.block_size,
            caching: options.scheduler.enable_prefix_caching,
            salt: Salt::NONE,
        });
        let weighed = routing.weighs() && options.replicas > 1;
        let traced = observer.wants_trace();
        let engine = |replica| Engine::new(replica, options, weighed, traced);
        Ok(Self {
            client: Client::new(source, options.max_concurrency),
            engines: (0..options.replicas).map(engine).collect::<Result<_, _>>()?,
            routing,
            log: EventLog::new(options.seed, options.replicas),
            recorder,
            observer,
            lines: Vec::new(),
            now: 0,
            end_ns: 0,
        })
    }

    /// Processes event after event: steps that end, then requests that are sent, then steps that begin.
    /// Returns whether it was stopped.
    fn go_on(&mut self) -> Result<bool, Error> {
        self.client.read(self.recorder, self.observer)?;
        while let Some(now) = self.next_moment() {
            if self.observer.stop() {
                return Ok(true);
            }
            self.now = now;
            for at in 0..self.engines.len() {
                if self.engines[at].ends() == Some(now) {
                    self.finish(at)?;
                }
            }
            while self.client.due(now) == Some(now) {
                // Millions may be due at once.
                if self.observer.stop() {
                    return Ok(true);
                }
                self.send()?;
            }
            for engine in self.engines.iter_mut().filter(|engine| engine.may_begin(now)) {
                engine.begin(now)?;
            }
        }
        Ok(false)
    }

    fn next_moment(&self) -> Option<u64> {
        let looks = self.engines.iter().filter_map(Engine::looks).min();
        let due = self.client.due(self.now);
        match (looks, due) {
            (Some(looks), Some(due)) => Some(looks.min(due)),
            (looks, due) => looks.or(due),
        }
    }

    fn finish(&mut self, at: usize) -> Result<(), Error> {
        let engine = &mut self.engines[at];
        engine.finish(&mut self.log)?;
        let report = engine.report();
        self.end_ns = self.end_ns.max(report.end_ns);
        self.client.freed(report.ended.len());
        self.lines.clear();
        self.recorder.step(report, &mut self.lines);
        self.observer.step(report)?;
        for line in &self.lines {
            self.observer.line(line)?;
        }
        self.engines[at].tell(self.observer)
    }

    fn send(&mut self) -> Result<(), Error> {
        let Some((request, intended)) = self.client.send(self.now) else { return Ok(()) };
        let (index, now) = (request.index, self.now);
        let ticket = self.recorder.send(&request, intended, now);
        let at = self.routing.choose(&request.prompt, &self.engines);
        self.log.sent(index, intended, now, at as u32);
        if let Err(why) = self.engines[at].submit(now, ticket, index, request.prompt, request.max_tokens) {
            self.log.refused(index, now);
            self.client.freed(1);
            self.observer.line(&self.recorder.fail(ticket, now, why))?;
        }
        self.client.read(self.recorder, self.observer)
    }
}
