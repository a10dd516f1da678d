//! Records what an engine reports, and keeps track of the requests in flight.

mod ends;
mod result;
mod stream;

use super::blocks::Touches;
use super::distribution::Distribution;
use super::in_flight::{Details, InFlight, NOT_YET};
use super::latencies::{Gaps, LatencySet, RequestTimes};
use super::peaks::TokensPerSecond;
use super::speculation::{DraftTotals, Drafts};
use super::timeline::Bins;
use super::totals::Totals;
use super::{Slo, Summary};
use crate::replay::{PlannedRequest, RequestLine, SkippedRequest, StepReport, Ticket};

/// What a recorder must know beforehand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecorderOptions {
    /// The latency goals, for goodput.
    pub slo: Slo,
    /// The number of requests in the workload, skipped records included. The steady window is the middle
    /// eight tenths of them.
    pub items: u64,
    /// How many tokens a KV block holds.
    pub block_size: u32,
    /// The rate that was asked for, in requests per second.
    pub rate_asked: Option<f64>,
    /// Whether lines hold token ids and text.
    pub save_outputs: bool,
    /// Whether a server runs the requests. It tells of their tokens, and nothing of its steps and its KV pool.
    pub server: bool,
}

/// The measures of a replay. Its memory is bounded by what is in flight: some hundred bytes per request,
/// and histograms of a few megabytes.
#[derive(Debug)]
pub struct Recorder {
    options: RecorderOptions,
    in_flight: InFlight,
    /// The latencies of requests outside the steady window, then of those inside.
    latencies: [LatencySet; 2],
    totals: [Totals; 2],
    drafts: [DraftTotals; 2],
    gaps: Gaps,
    bins: Bins,
    tokens_per_second: TokensPerSecond,
    touches: Touches,
    lateness: Distribution,
    sent: Sent,
    steps: Steps,
    restored: u64,
    /// The time of the last event.
    end_ns: u64,
    /// What had been done when a tenth of the workload was finished, and when nine tenths were.
    marks: [Option<Mark>; 2],
}

/// What is needed to compute the rate at which requests were sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    requests: u64,
    first_ns: u64,
    last_ns: u64,
    most_in_flight: usize,
}

/// Counts over all steps.
#[derive(Clone, Copy, Debug, Default)]
struct Steps {
    steps: u64,
    replayed: u64,
    prefill_tokens: u64,
    decode_rows: u64,
    preempted: u64,
    output_tokens: u64,
    most_rows: usize,
}

/// What had been done at some moment.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    at_ns: u64,
    completed: u64,
    input_tokens: u64,
    output_tokens: u64,
}

impl Recorder {
    /// A recorder that has recorded nothing yet.
    #[must_use]
    pub fn new(options: RecorderOptions) -> Self {
        Self {
            in_flight: InFlight::default(),
            latencies: [LatencySet::new(), LatencySet::new()],
            totals: <[Totals; 2]>::default(),
            drafts: <[DraftTotals; 2]>::default(),
            gaps: Gaps::default(),
            bins: Bins::new(),
            tokens_per_second: TokensPerSecond::new(),
            touches: Touches::new(options.block_size),
            lateness: Distribution::new(),
            sent: Sent::default(),
            steps: Steps::default(),
            restored: 0,
            end_ns: 0,
            // With fewer than ten requests, the middle begins with the run.
            marks: [(options.items < 10).then(Mark::default), None],
            options,
        }
    }

    /// Records that a request is sent, and returns its ticket. `intended_ns` is when it should have been
    /// sent, `sent_ns` when it was.
    pub fn send(&mut self, request: &PlannedRequest, intended_ns: u64, sent_ns: u64) -> Ticket {
        self.sending(intended_ns, sent_ns);
        let details = Details {
            index: request.index,
            source_id: request.source_id.clone(),
            category: request.category.clone(),
            sent_ns,
            prompt_tokens: u32::try_from(request.prompt.len()).unwrap_or(u32::MAX),
            cached_tokens: 0,
            expect: request.expect.clone(),
            drafts: Drafts::default(),
            replica: 0,
        };
        let steady = self.is_steady(request.index);
        let ticket = self.in_flight.insert(intended_ns, steady, details);
        self.sent.most_in_flight = self.sent.most_in_flight.max(self.in_flight.len());
        ticket
    }

    /// Records that a record is not run, and returns its line.
    pub fn skip(&mut self, request: &SkippedRequest) -> RequestLine {
        let line = ends::skipped(request);
        self.count(&line, &RequestTimes::default(), self.is_steady(request.index));
        line
    }

    /// Records that the engine refused a request that was sent, or lost it. Returns its line.
    ///
    /// For a ticket that is not in flight, the line has no name, and nothing is counted.
    pub fn fail(&mut self, ticket: Ticket, now_ns: u64, error: String) -> RequestLine {
        self.end_ns = self.end_ns.max(now_ns);
        let Some((progress, details)) = self.in_flight.remove(ticket) else {
            return ends::unknown(error);
        };
        let mut line = ends::line(&progress, details);
        let mut reading = progress.reading;
        self.touches.end(&mut reading, progress.prefix_blocks);
        ends::failed(&mut line, error);
        self.drafts[usize::from(progress.steady)].add(&line.drafted_by_position, &line.accepted_by_position);
        self.count(&line, &RequestTimes::default(), progress.steady);
        line
    }

    /// Restores a request of a run that is resumed, from the line that was written for it.
    ///
    /// Its latencies, lengths, drafts and score count as before. What is counted step by step can't be
    /// restored; [`Summary::restored`] says for how many requests it is missing. All lines must be restored
    /// before the first step, where means over time begin.
    pub fn restore(&mut self, line: &RequestLine) {
        let steady = line.request_id.parse().is_ok_and(|index| self.is_steady(index));
        let times = ends::times_of(line);
        self.restored += 1;
        if let (Some(intended), Some(sent)) = (line.intended_arrival_s, line.sent_s) {
            self.sending(ends::ns_of_s(intended), ends::ns_of_s(sent));
        }
        if let Some(ns) = line.finish_s.map(ends::ns_of_s) {
            self.end_ns = self.end_ns.max(ns);
            self.bins.at(ns).finished += 1;
        }
        self.drafts[usize::from(steady)].add(&line.drafted_by_position, &line.accepted_by_position);
        self.steps.preempted += u64::from(line.num_preemptions);
        self.steps.output_tokens += u64::from(line.output_tokens);
        self.count(line, &times, steady);
    }

    /// Records a step that an engine made. The lines of requests that ended are added to `ended`. Rows
    /// whose ticket is not in flight are ignored.
    pub fn step(&mut self, report: &StepReport, ended: &mut Vec<RequestLine>) {
        let end_ns = report.end_ns;
        self.observe(report.start_ns);
        let (mut tokens, mut drafts, mut accepted, mut cached) = (0u64, 0u64, 0u64, 0u64);
        for row in &report.rows {
            let Some(request) = self.in_flight.progress(row.ticket) else { continue };
            if row.new_tokens > 0 && request.last_token_ns != NOT_YET {
                let gap_ns = end_ns.saturating_sub(request.last_token_ns);
                self.gaps.row(gap_ns, row.new_tokens, request.steady, &mut self.latencies);
                self.touches.row(&mut request.reading, row.context, request.prefix_blocks);
                request.last_token_ns = end_ns;
                request.decode_steps += 1;
                request.output_tokens = request.output_tokens.saturating_add(u32::from(row.new_tokens));
            } else {
                let first = request.begun_ns == NOT_YET;
                if first {
                    request.begun_ns = report.start_ns;
                    request.prefix_blocks = row.cached_tokens / self.options.block_size.max(1);
                }
                if row.new_tokens > 0 {
                    (request.first_token_ns, request.last_token_ns) = (end_ns, end_ns);
                    request.output_tokens = u32::from(row.new_tokens);
                    cached += u64::from(row.cached_tokens);
                }
                if let Some(details) = self.in_flight.details(row.ticket).filter(|_| first) {
                    details.replica = report.replica;
                    details.cached_tokens = row.cached_tokens;
                }
            }
            tokens += u64::from(row.new_tokens);
            if row.num_drafts > 0 {
                drafts += u64::from(row.num_drafts);
                accepted += u64::from(row.num_accepted);
                if let Some(details) = self.in_flight.details(row.ticket) {
                    details.drafts.row(row.num_drafts, row.num_accepted);
                }
            }
        }
        self.gaps.flush(&mut self.latencies);

        self.end_ns = self.end_ns.max(end_ns);
        self.bins.step(report);
        let bin = self.bins.at(end_ns);
        bin.output_tokens += tokens;
        bin.prompt_tokens += u64::from(report.prefill_tokens);
        bin.preemptions += u64::from(report.preempted);
        bin.drafts += drafts;
        bin.accepted += accepted;
        bin.cached_tokens += cached;
        self.tokens_per_second.add(end_ns, tokens);
        let steps = &mut self.steps;
        steps.steps += 1;
        steps.replayed += u64::from(report.replayed);
        steps.prefill_tokens += u64::from(report.prefill_tokens);
        steps.decode_rows += u64::from(report.decode_rows);
        steps.preempted += u64::from(report.preempted);
        steps.output_tokens += tokens;
        steps.most_rows = steps.most_rows.max(report.rows.len());
        for end in &report.ended {
            ended.extend(self.end(report, end));
        }
    }

    /// The number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The number of requests that are finished, skipped or failed.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.totals.iter().map(Totals::done).sum()
    }

    /// All measures so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.result()
    }

    /// Records that a step begins or tokens come at `ns`. If they are the first since the run was resumed, what its earlier part
    /// did before is not known. It must not count as idle time.
    fn observe(&mut self, ns: u64) {
        if self.steps.steps == 0 && self.restored > 0 {
            self.bins.observe_from(ns);
        }
    }

    /// Records that something was sent.
    fn sending(&mut self, intended_ns: u64, sent_ns: u64) {
        self.bins.at(intended_ns).arrivals += 1;
        self.lateness.record(sent_ns.saturating_sub(intended_ns));
        let sent = &mut self.sent;
        sent.first_ns = if sent.requests == 0 { sent_ns } else { sent.first_ns.min(sent_ns) };
        sent.last_ns = sent.last_ns.max(sent_ns);
        sent.requests += 1;
    }

    /// Whether the request at this place of the workload is in the steady window, its middle eight tenths.
    fn is_steady(&self, index: u64) -> bool {
        let tenth = self.options.items / 10;
        (tenth..self.options.items - tenth).contains(&index)
    }

    /// Counts a request that is finished, skipped or failed.
    fn count(&mut self, line: &RequestLine, times: &RequestTimes, steady: bool) {
        let (slo, block_size) = (&self.options.slo, self.options.block_size);
        self.totals[usize::from(steady)].add(line, times, slo, block_size);
        self.latencies[usize::from(steady)].request(times);
        let (done, tenth) = (self.done(), self.options.items / 10);
        for (mark, place) in self.marks.iter_mut().zip([tenth, self.options.items - tenth]) {
            if mark.is_none() && done >= place {
                *mark = Some(Mark {
                    at_ns: self.end_ns,
                    completed: self.totals.iter().map(|t| t.completed).sum(),
                    input_tokens: self.totals.iter().map(|t| t.input_tokens).sum(),
                    output_tokens: self.steps.output_tokens,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
