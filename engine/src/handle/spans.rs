//! Spans of the `tracing` crate: of each sample from its submission to its end, and of each step.
//!
//! A program that embeds the engine may subscribe to them, and `serve` exports them if it is built with its feature `otel`. Without a
//! subscriber a span costs one comparison.

use tracing::Span;
use tracing::field::{Empty, debug};

use super::stats::Stations;
use crate::session::{RequestOutput, SessionStep};

/// The target of the spans, for filters.
const TARGET: &str = "pagedraft::engine";

/// Numbers are written with a sign: OpenTelemetry knows no others, and would get texts.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Begins the span of a sample that was just submitted.
pub(super) fn request(output: &RequestOutput, max_tokens: u32) -> Span {
    tracing::info_span!(
        target: TARGET,
        parent: None,
        "request",
        request = output.request_id,
        sample = i64::from(output.sample),
        prompt_tokens = whole(output.prompt_token_ids.len()),
        max_tokens = i64::from(max_tokens),
        cached_tokens = Empty,
        tokens = Empty,
        drafts = Empty,
        accepted = Empty,
        preemptions = Empty,
        queue_seconds = Empty,
        prefill_seconds = Empty,
        decode_seconds = Empty,
        finish_reason = Empty,
    )
}

/// Writes into the span of a sample how it ended. The span ends when it is dropped.
pub(super) fn ended(span: &Span, output: &RequestOutput, stations: Option<&Stations>) {
    if span.is_disabled() {
        return;
    }
    span.record("cached_tokens", i64::from(output.num_cached_tokens));
    span.record("tokens", whole(output.token_ids.len()));
    span.record("drafts", i64::from(output.num_drafts));
    span.record("accepted", i64::from(output.num_accepted));
    span.record("preemptions", i64::from(output.num_preemptions));
    if let Some(reason) = output.finish_reason {
        span.record("finish_reason", debug(reason));
    }
    if let Some(Stations { queued, prefill, decode }) = stations {
        span.record("queue_seconds", queued.as_secs_f64());
        span.record("prefill_seconds", prefill.as_secs_f64());
        span.record("decode_seconds", decode.as_secs_f64());
    }
}

/// The span of a step that is about to be made.
pub(super) fn step() -> Span {
    tracing::debug_span!(
        target: TARGET,
        parent: None,
        "step",
        step = Empty,
        rows = Empty,
        prefill_tokens = Empty,
        preempted = Empty,
    )
}

/// Writes into the span of a step what was done in it.
pub(super) fn stepped(span: &Span, report: &SessionStep) {
    span.record("step", report.step.cast_signed());
    span.record("rows", whole(report.rows));
    span.record("prefill_tokens", whole(report.prefill_tokens));
    span.record("preempted", whole(report.preempted));
}
