//! What an observer of a run is told.

use pagedraft::session::Session;
use pagedraft_spec_decode::StageTimes;
use pagedraft_workloads::replay::{RequestLine, StepReport};

/// Observes a run.
pub trait Observe {
    /// A request is finished, skipped or failed.
    ///
    /// # Errors
    ///
    /// A fault of the disk, which ends the run.
    fn line(&mut self, line: &RequestLine) -> anyhow::Result<()>;

    /// A step was made.
    fn step(&mut self, step: &LiveStep<'_>);
}

/// A step that was made, and the time that the loop took for it.
pub struct LiveStep<'a> {
    pub session: &'a Session,
    pub report: &'a StepReport,
    pub stages: StageTimes,
    /// The wall time in nanoseconds from the end of the step before until all work that this step caused
    /// was done. After idleness it begins when the first request is accepted.
    pub took_ns: u64,
    /// How many nanoseconds the engine was idle before it; 0 if it follows another step directly.
    pub idle_ns: u64,
    /// How many nanoseconds after its arrival the request that ended the idleness was accepted, if it had
    /// an arrival time.
    pub woke_ns: Option<u64>,
    /// The number of requests that were accepted before it.
    pub taken: u32,
    /// The number of requests that are finished, skipped or failed.
    pub done: u64,
}
