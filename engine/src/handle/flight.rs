//! A sample on its way through the engine.

use std::sync::Arc;
use std::time::Instant;

use pagedraft_spec_decode::sampling::RowLogprobs;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::Span;

use super::delta::{Delta, End, PromptDelta};
use super::spans;
use super::stats::{Stations, Stats};
use crate::session::{Emitted, RequestId, RequestOutput};

/// A sample that the engine has, and whoever reads its output.
pub(super) struct Flight {
    sample: u32,
    deltas: mpsc::Sender<Delta>,
    /// All samples of its request.
    pub request: Arc<[RequestId]>,
    arrived: Instant,
    /// When the step began that first ran it.
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Whether a delta was sent.
    began: bool,
    /// How many of its log probabilities were sent.
    logprobs: usize,
    span: Span,
}

/// Whether a reader takes what it is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    Reads,
    /// It is too many steps behind.
    IsBehind,
    /// It is gone, and says so itself.
    IsGone,
}

impl Flight {
    pub fn new(
        sample: u32,
        request: Arc<[RequestId]>,
        arrived: Instant,
        deltas: mpsc::Sender<Delta>,
        span: Span,
    ) -> Self {
        Self {
            sample,
            deltas,
            request,
            arrived,
            scheduled: None,
            first_token: None,
            last_token: None,
            began: false,
            logprobs: 0,
            span,
        }
    }

    /// Takes note of a step that began at `start` and ran it.
    pub fn ran(&mut self, start: Instant) {
        self.scheduled.get_or_insert(start);
    }

    /// Counts the tokens that it got in a step that ended at `now`. `output` is its output so far.
    pub fn count(&mut self, tokens: usize, output: &RequestOutput, now: Instant, stats: &mut Stats) {
        if tokens == 0 {
            return;
        }
        stats.generation_tokens += tokens as u64;
        match self.last_token.replace(now) {
            None => {
                self.first_token = Some(now);
                stats.prompt_tokens += output.prompt_token_ids.len() as u64;
                stats.prompt_tokens_cached += u64::from(output.num_cached_tokens);
                stats.time_to_first_token.record((now - self.arrived).as_secs_f64());
            }
            Some(before) => stats.inter_token_latency.record((now - before).as_secs_f64()),
        }
        stats.inter_token_latency.record_times(0.0, tokens as u64 - 1);
    }

    /// Counts it as ended.
    pub fn ended(&self, output: &RequestOutput, stats: &mut Stats) {
        let stations = self.stations();
        spans::ended(&self.span, output, stations.as_ref());
        stats.end(output, stations);
    }

    /// The times of its way, if it has a token.
    fn stations(&self) -> Option<Stations> {
        let (scheduled, first, last) = (self.scheduled?, self.first_token?, self.last_token?);
        Some(Stations {
            queued: scheduled.saturating_duration_since(self.arrived),
            prefill: first.saturating_duration_since(scheduled),
            decode: last.saturating_duration_since(first),
        })
    }

    /// What it got in a step, besides its end. `output` is its output so far.
    pub fn delta(&mut self, emitted: Emitted, output: &RequestOutput) -> Delta {
        let first = !std::mem::replace(&mut self.began, true);
        Delta {
            sample: self.sample,
            token_ids: emitted.tokens,
            text: emitted.text,
            logprobs: self.new_logprobs(output),
            prompt: first.then(|| Box::new(prompt_delta(output))),
            end: None,
        }
    }

    /// The log probabilities that were not sent yet.
    fn new_logprobs(&mut self, output: &RequestOutput) -> Vec<RowLogprobs> {
        let (Some(best), Some(own)) = (&output.logprobs, &output.token_logprobs) else { return Vec::new() };
        let new = best.iter().zip(own).skip(self.logprobs);
        let new: Vec<_> = new.map(|(best, &chosen)| RowLogprobs { chosen, best: best.clone() }).collect();
        self.logprobs += new.len();
        new
    }

    /// Hands a delta to the reader, without waiting for it.
    pub fn send(&self, delta: Delta) -> Reader {
        match self.deltas.try_send(delta) {
            Ok(()) => Reader::Reads,
            Err(TrySendError::Full(_)) => Reader::IsBehind,
            Err(TrySendError::Closed(_)) => Reader::IsGone,
        }
    }

    /// Tells the reader that the sample has ended without its output.
    pub fn end(&self, end: End) -> Reader {
        self.send(Delta { sample: self.sample, end: Some(end), ..Delta::default() })
    }
}

/// Whether a step gives a sample something that its reader can be told.
pub(super) fn says_something(emitted: &Emitted) -> bool {
    !emitted.tokens.is_empty() || !emitted.text.is_empty() || emitted.finish.is_some()
}

fn prompt_delta(output: &RequestOutput) -> PromptDelta {
    PromptDelta {
        num_cached_tokens: output.num_cached_tokens,
        token_logprobs: output.prompt_token_logprobs.clone(),
        logprobs: output.prompt_logprobs.clone(),
    }
}
