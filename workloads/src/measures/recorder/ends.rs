//! Makes the lines of requests that are finished, skipped or failed.

use pagedraft_scheduler::FinishReason;
use sha2::{Digest, Sha256};

use super::Recorder;
use crate::measures::in_flight::{Details, NOT_YET, Progress};
use crate::measures::latencies::RequestTimes;
use crate::replay::{EndedRequest, RequestLine, SkippedRequest, Status, StepReport};

impl Recorder {
    /// Makes the line of a request that ended with a step. `None` if it is not in flight.
    pub(super) fn end(&mut self, report: &StepReport, end: &EndedRequest) -> Option<RequestLine> {
        let (mut progress, details) = self.in_flight.remove(end.ticket)?;
        details.cached_tokens = end.cached_tokens;
        details.replica = report.replica;
        let mut line = line(&progress, details);
        line.num_preemptions = end.preemptions;
        line.blocks_held = end.blocks_held;
        line.finish_reason = Some(
            match end.reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Abort | FinishReason::Failed => "abort",
            }
            .to_owned(),
        );
        let mut times = RequestTimes::default();
        if matches!(end.reason, FinishReason::Abort | FinishReason::Failed) {
            failed(&mut line, end.error.clone().unwrap_or_else(|| "aborted".to_owned()));
        } else {
            times = finished(&mut line, &progress, report.end_ns);
            self.bins.at(report.end_ns).finished += 1;
        }
        self.touches.end(&mut progress.reading, progress.prefix_blocks);
        let decode_steps = u64::from(progress.decode_steps);
        self.touches.held(report.replica, &end.prefix_blocks, decode_steps, report.pool.num_blocks);
        if let Some(output) = &end.output {
            line.output_hash = Some(hash(&output.token_ids));
            if line.status == Status::Finished {
                line.score = details.expect.as_ref().map(|e| crate::tasks::score(e, &output.text));
            }
            if self.options.save_outputs {
                line.token_ids = Some(output.token_ids.clone());
                line.text = Some(output.text.clone());
            }
        }
        self.drafts[usize::from(progress.steady)].add(&line.drafted_by_position, &line.accepted_by_position);
        self.count(&line, &times, progress.steady);
        Some(line)
    }
}

/// The line of a request without what its end decides. Its status must still be set.
pub(super) fn line(progress: &Progress, details: &mut Details) -> RequestLine {
    let (drafted_by_position, accepted_by_position) = details.drafts.by_position();
    let begun = (progress.begun_ns != NOT_YET).then_some(progress.begun_ns);
    let first = (progress.first_token_ns != NOT_YET).then_some(progress.first_token_ns);
    RequestLine {
        source_id: details.source_id.take(),
        category: details.category.take(),
        intended_arrival_s: Some(seconds(progress.intended_ns)),
        sent_s: Some(seconds(details.sent_ns)),
        first_token_s: first.map(seconds),
        prompt_tokens: Some(details.prompt_tokens),
        output_tokens: progress.output_tokens,
        cached_tokens: Some(details.cached_tokens),
        queue_ms: begun.map(|ns| milliseconds(ns.saturating_sub(progress.intended_ns))),
        drafted_by_position,
        accepted_by_position,
        replica: details.replica,
        ..empty(details.index.to_string(), Status::Failed)
    }
}

/// The latencies of a request that gave all its tokens.
fn latencies(progress: &Progress) -> RequestTimes {
    let since = |ns: u64| (ns != NOT_YET).then(|| ns.saturating_sub(progress.intended_ns));
    let behind_first = u64::from(progress.output_tokens.saturating_sub(1));
    let spent = progress.last_token_ns.saturating_sub(progress.first_token_ns);
    RequestTimes {
        ttft: since(progress.first_token_ns),
        tpot: (behind_first > 0).then(|| (spent + behind_first / 2) / behind_first.max(1)),
        e2el: since(progress.last_token_ns),
        queue: since(progress.begun_ns),
    }
}

/// Marks a line as that of a request which gave all its tokens, and returns its latencies. `ended_ns` counts as its end if it
/// gave none.
pub(super) fn finished(line: &mut RequestLine, progress: &Progress, ended_ns: u64) -> RequestTimes {
    let times = latencies(progress);
    line.status = Status::Finished;
    let seen = progress.last_token_ns != NOT_YET;
    line.finish_s = Some(seconds(if seen { progress.last_token_ns } else { ended_ns }));
    line.ttft_ms = times.ttft.map(milliseconds);
    line.tpot_ms = times.tpot.map(milliseconds);
    line.e2el_ms = times.e2el.map(milliseconds);
    times
}

/// Marks a line as that of a request which did not give what was asked of it.
pub(super) fn failed(line: &mut RequestLine, error: String) {
    line.status = Status::Failed;
    line.error = Some(error);
}

/// The line of a record that is not run.
pub(super) fn skipped(request: &SkippedRequest) -> RequestLine {
    RequestLine {
        source_id: request.source_id.clone(),
        category: request.category.clone(),
        skip_reason: Some(request.reason),
        intended_arrival_s: request.arrival_ns.map(seconds),
        prompt_tokens: request.prompt_tokens,
        ..empty(request.index.to_string(), Status::Skipped)
    }
}

/// The line for a ticket that is not in flight.
pub(super) fn unknown(error: String) -> RequestLine {
    let mut line = empty(String::new(), Status::Failed);
    line.error = Some(error);
    line
}

fn empty(request_id: String, status: Status) -> RequestLine {
    RequestLine {
        request_id,
        source_id: None,
        category: None,
        status,
        skip_reason: None,
        error: None,
        error_kind: None,
        intended_arrival_s: None,
        sent_s: None,
        first_token_s: None,
        finish_s: None,
        prompt_tokens: None,
        output_tokens: 0,
        cached_tokens: Some(0),
        ttft_ms: None,
        tpot_ms: None,
        e2el_ms: None,
        queue_ms: None,
        drafted_by_position: Vec::new(),
        accepted_by_position: Vec::new(),
        finish_reason: None,
        num_preemptions: 0,
        blocks_held: 0,
        replica: 0,
        output_hash: None,
        score: None,
        token_ids: None,
        text: None,
        resumed: false,
        counted_by: None,
        retries: 0,
    }
}

/// The latencies in a line that was written before. A failed request has none.
pub(super) fn times_of(line: &RequestLine) -> RequestTimes {
    if line.status != Status::Finished {
        return RequestTimes::default();
    }
    let ns = |ms: f64| (ms * 1e6).round() as u64;
    RequestTimes {
        ttft: line.ttft_ms.map(ns),
        tpot: line.tpot_ms.map(ns),
        e2el: line.e2el_ms.map(ns),
        queue: line.queue_ms.map(ns),
    }
}

/// Converts the seconds in a line to nanoseconds.
pub(super) fn ns_of_s(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

/// Converts nanoseconds to the nearest number of seconds, which is printed with at most 9 decimals.
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The first 16 hexadecimal digits of the SHA-256 of token ids in little-endian bytes.
pub(super) fn hash(token_ids: &[u32]) -> String {
    let mut sha = Sha256::new();
    for id in token_ids {
        sha.update(id.to_le_bytes());
    }
    sha.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
