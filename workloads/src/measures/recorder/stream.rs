//! Records what comes from a server, which tells of tokens and not of steps.

use super::{Recorder, ends};
use crate::measures::in_flight::NOT_YET;
use crate::measures::latencies::RequestTimes;
use crate::replay::{RequestLine, StreamEnd, StreamFailure, Ticket};

impl Recorder {
    /// Records that `tokens` tokens of a request were received at one moment. A ticket that is not in flight is ignored.
    pub fn received(&mut self, ticket: Ticket, at_ns: u64, tokens: u32) {
        let Some(request) = self.in_flight.progress(ticket).filter(|_| tokens > 0) else { return };
        if request.last_token_ns == NOT_YET {
            request.first_token_ns = at_ns;
        } else {
            let gap_ns = at_ns.saturating_sub(request.last_token_ns);
            self.latencies[usize::from(request.steady)].gap(gap_ns, u64::from(tokens), 1);
        }
        request.last_token_ns = at_ns;
        request.output_tokens = request.output_tokens.saturating_add(tokens);
        self.observe(at_ns);
        self.end_ns = self.end_ns.max(at_ns);
        self.bins.at(at_ns).output_tokens += u64::from(tokens);
        self.tokens_per_second.add(at_ns, u64::from(tokens));
        self.steps.output_tokens += u64::from(tokens);
        self.steps.steps += 1;
    }

    /// Records the end of a stream, and returns the line of its request. The server's own counts replace what was counted
    /// chunk by chunk.
    ///
    /// For a ticket that is not in flight, the line has no name, and nothing is counted.
    pub fn end_stream(&mut self, ticket: Ticket, end: StreamEnd, retries: u32) -> RequestLine {
        let Some((mut progress, details)) = self.in_flight.remove(ticket) else {
            return ends::unknown("a stream ended that was not asked for".to_owned());
        };
        self.end_ns = self.end_ns.max(end.at_ns);
        let counted = u64::from(progress.output_tokens);
        if let Some(usage) = end.usage {
            progress.output_tokens = usage.output_tokens;
            details.prompt_tokens = usage.prompt_tokens;
        }
        let expect = details.expect.take();
        let mut line = ends::line(&progress, details);
        let times = ends::finished(&mut line, &progress, end.at_ns);
        line.cached_tokens = end.usage.and_then(|usage| usage.cached_tokens);
        line.finish_reason = end.finish_reason;
        line.counted_by = Some(end.counted_by);
        line.retries = retries;
        line.score = expect.map(|expect| crate::tasks::score(&expect, &end.text));
        line.output_hash = end.token_ids.as_deref().map(ends::hash);
        line.token_ids = end.token_ids.filter(|_| self.options.save_outputs);
        line.text = self.options.save_outputs.then_some(end.text);
        let told = self.steps.output_tokens + u64::from(progress.output_tokens);
        self.steps.output_tokens = told.saturating_sub(counted);
        self.bins.at(end.at_ns).finished += 1;
        self.count(&line, &times, progress.steady);
        line
    }

    /// Records that a server failed a request, and returns its line.
    ///
    /// For a ticket that is not in flight, the line has no name, and nothing is counted.
    pub fn fail_stream(&mut self, ticket: Ticket, failure: StreamFailure, retries: u32) -> RequestLine {
        let Some((progress, details)) = self.in_flight.remove(ticket) else {
            return ends::unknown(failure.error);
        };
        self.end_ns = self.end_ns.max(failure.at_ns);
        let mut line = ends::line(&progress, details);
        ends::failed(&mut line, failure.error);
        line.error_kind = Some(failure.kind);
        line.cached_tokens = None;
        line.retries = retries;
        self.count(&line, &RequestTimes::default(), progress.steady);
        line
    }
}
