//! Engines under one stream of arrivals, in virtual time.

use pagedraft_scheduler::SchedulerConfig;

use super::{CostModel, Router};
use crate::Error;
use crate::measures::Recorder;
use crate::replay::{Incoming, RequestLine, StepReport};

/// How a simulated engine speculates.
#[derive(Clone, Debug, PartialEq)]
pub struct SimSpeculation {
    /// A name in the cost model's `proposers` and `acceptance`.
    pub proposer: String,
    /// The probability that a draft is accepted, instead of the cost model's.
    pub acceptance: Option<f64>,
    /// Drafts a row at most.
    pub most: u16,
    /// Whether their number is chosen by what they cost, up to `most`.
    pub auto: bool,
    /// Whether a verify row is as many rows of one token (batch expansion).
    pub batch_expansion: bool,
}

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct SimOptions {
    /// Each engine's scheduler; `num_speculative_tokens` is set by `speculation`.
    pub scheduler: SchedulerConfig,
    /// What its steps cost.
    pub cost: CostModel,
    /// How it speculates.
    pub speculation: Option<SimSpeculation>,
    /// Whether no graph is replayed.
    pub enforce_eager: bool,
    /// Engines.
    pub replicas: u32,
    /// Who gets a request.
    pub router: Router,
    /// Requests in flight at most; later ones wait at the client, from their intended arrival on.
    pub max_concurrency: Option<u32>,
    /// Acceptance is drawn from this.
    pub seed: u64,
}

/// What a simulation came to, besides its measures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimReport {
    /// SHA-256 of the event log, in hexadecimal digits.
    pub event_log_sha256: String,
    /// When the last step ended, in nanoseconds since the run began.
    pub end_ns: u64,
    /// Whether the observer stopped it.
    pub stopped: bool,
}

/// Who looks on.
pub trait Observer {
    /// A request is done with.
    ///
    /// # Errors
    ///
    /// It ends the simulation.
    fn line(&mut self, line: &RequestLine) -> Result<(), Error>;

    /// A step was made.
    ///
    /// # Errors
    ///
    /// It ends the simulation.
    fn step(&mut self, _report: &StepReport) -> Result<(), Error> {
        Ok(())
    }

    /// Whether to stop here; asked now and then.
    fn stop(&mut self) -> bool {
        false
    }
}

/// Runs a workload to its end.
///
/// # Errors
///
/// Options that can't be, a dataset that can't be read on, a fault of the scheduler, an error of the observer.
pub fn simulate(
    _source: &mut dyn Iterator<Item = Result<Incoming, crate::dataset::DatasetError>>,
    _options: &SimOptions,
    _recorder: &mut Recorder,
    _observer: &mut dyn Observer,
) -> Result<SimReport, Error> {
    unimplemented!()
}
