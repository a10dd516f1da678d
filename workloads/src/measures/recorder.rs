//! Takes in what an engine reports, and keeps what is in flight.

use super::{Slo, Summary};
use crate::replay::{PlannedRequest, RequestLine, SkippedRequest, StepReport, Ticket};

/// What a recorder is told beforehand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecorderOptions {
    /// Goals, for goodput.
    pub slo: Slo,
    /// Requests of the workload, skipped records included: the steady window is its middle eight tenths.
    pub items: u64,
    /// Tokens a KV block.
    pub block_size: u32,
    /// Requests a second that were asked for.
    pub rate_asked: Option<f64>,
    /// Whether lines have token ids and text.
    pub save_outputs: bool,
}

/// The measures of a replay. Its memory is bounded by what is in flight.
#[derive(Debug)]
pub struct Recorder {}

impl Recorder {
    /// A recorder that has seen nothing.
    #[must_use]
    pub fn new(_options: RecorderOptions) -> Self {
        unimplemented!()
    }

    /// A request is sent: its ticket.
    pub fn send(&mut self, _request: &PlannedRequest, _intended_ns: u64, _sent_ns: u64) -> Ticket {
        unimplemented!()
    }

    /// A record is not run.
    pub fn skip(&mut self, _request: &SkippedRequest) -> RequestLine {
        unimplemented!()
    }

    /// The engine did not take a request that was sent, or lost it.
    pub fn fail(&mut self, _ticket: Ticket, _now_ns: u64, _error: String) -> RequestLine {
        unimplemented!()
    }

    /// A request of a run that is resumed, as it was written.
    pub fn restore(&mut self, _line: &RequestLine) {
        unimplemented!()
    }

    /// An engine made a step; the lines of the requests that ended are added to `ended`.
    pub fn step(&mut self, _report: &StepReport, _ended: &mut Vec<RequestLine>) {
        unimplemented!()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        unimplemented!()
    }

    /// Requests that are done with: finished, skipped, failed.
    #[must_use]
    pub fn done(&self) -> u64 {
        unimplemented!()
    }

    /// What it all came to.
    #[must_use]
    pub fn summary(&self) -> Summary {
        unimplemented!()
    }
}
