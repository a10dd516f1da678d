//! The events that the engine emits while it runs.
//!
//! They are events of the `tracing` crate. A program that embeds the engine may subscribe to them; the
//! command line does so if `RUST_LOG` is set. Without a subscriber an event costs one comparison, and
//! nothing is formatted for it.
//!
//! | level | what is told |
//! |---|---|
//! | warn | a request failed alone, or a whole step failed |
//! | info | an engine was opened or closed |
//! | debug | how the engine was loaded; a request was submitted, was preempted, or ended; a segment found no graph and ran eagerly; speculation was set up anew |
//! | trace | every step |

use pagedraft_block_manager::{KvGroup, SideTable, Slab};
use pagedraft_model::{CaptureReport, Ran};
use pagedraft_scheduler::StepPlan;
use pagedraft_spec_decode::ExecutionRecord;
use tracing::{Level, debug, enabled, info, trace, warn};

use super::info::SessionInfo;
use super::options::SpeculationOptions;
use super::request::{Request, RequestId, RequestOutput, SessionStep};
use super::sequence::Sequence;
use crate::error::EngineError;

/// The target of the events, for filters.
const TARGET: &str = "pagedraft::session";

pub(super) fn opened(info: &SessionInfo, groups: &[KvGroup]) {
    info!(
        target: TARGET,
        model = info.model_id,
        parameters = info.parameters,
        dtype = %info.dtype,
        quantization = %info.quantization,
        instruction_set = %info.isa,
        threads = info.threads,
        max_model_len = info.max_model_len,
        kv_blocks = info.num_blocks,
        block_size = info.block_size,
        kv_groups = groups.len(),
        "engine opened"
    );
    for group in groups {
        debug!(
            target: TARGET,
            name = group.name,
            bytes_per_token = group.bytes_per_token(),
            window = group.window,
            lags = group.lags,
            "KV group"
        );
    }
}

pub(super) fn captured(model: &str, report: &CaptureReport) {
    debug!(
        target: TARGET,
        model,
        graphs = report.graphs,
        bytes = report.bytes,
        elapsed = ?report.elapsed,
        "graphs captured"
    );
}

pub(super) fn closed() {
    info!(target: TARGET, "engine closed");
}

pub(super) fn switched(options: Option<(&SpeculationOptions, bool)>) {
    let Some((options, eager)) = options else { return };
    debug!(
        target: TARGET,
        draft = options.draft.as_ref().map(tracing::field::display),
        num_speculative_tokens = %options.length,
        enforce_eager = eager,
        "speculation set up"
    );
}

pub(super) fn submitted(request: &Request, sample: u32) {
    debug!(
        target: TARGET,
        request = request.request_id,
        sample,
        prompt_tokens = request.prompt.len(),
        max_tokens = request.max_tokens,
        "request submitted"
    );
}

pub(super) fn ended(output: &RequestOutput) {
    debug!(
        target: TARGET,
        request = output.request_id,
        sample = output.sample,
        reason = output.finish_reason.as_ref().map(tracing::field::debug),
        tokens = output.token_ids.len(),
        cached_tokens = output.num_cached_tokens,
        preemptions = output.num_preemptions,
        "request ended"
    );
}

/// Emits why a request failed. The reason names the request.
pub(super) fn failed(output: &RequestOutput) {
    warn!(target: TARGET, error = output.error, "request failed");
}

pub(super) fn step_failed(error: &EngineError) {
    warn!(target: TARGET, error = format!("{error:#}"), "step failed");
}

/// Tells that a step was ended by whoever drives the session.
pub(super) fn step_interrupted() {
    info!(target: TARGET, "step interrupted");
}

/// Emits which requests were preempted while a plan was made.
pub(super) fn preempted(plan: &StepPlan, sequences: &Slab<Sequence>, by_key: &SideTable<RequestId>) {
    if plan.preempted.is_empty() || !enabled!(target: TARGET, Level::DEBUG) {
        return;
    }
    for &key in &plan.preempted {
        let sequence = by_key.get(key).and_then(|id| sequences.get(id.0));
        let Some(output) = sequence.map(Sequence::output) else { continue };
        let step = plan.id.0;
        debug!(target: TARGET, request = output.request_id, sample = output.sample, step, "request preempted");
    }
}

/// Emits what a step did, and which of its segments looked for a graph in vain.
pub(super) fn stepped(report: &SessionStep, record: &ExecutionRecord) {
    let more = record.more.iter().take(record.more_segments).map(|one| one.ran);
    for (segment, ran) in std::iter::once(record.ran).chain(more).enumerate() {
        if let Ran::Eager(Some(why)) = ran {
            debug!(target: TARGET, step = report.step, segment, reason = %why, "no graph, ran eagerly");
        }
    }
    trace!(
        target: TARGET,
        step = report.step,
        rows = report.rows,
        prefill_tokens = report.prefill_tokens,
        decode_rows = report.decode_rows,
        running = report.running,
        waiting = report.waiting,
        kv_blocks_used = report.pool.used,
        replayed = report.replayed,
        elapsed = ?report.elapsed,
        "step"
    );
}

/// Emits that blocks of a prefix came back from a lower tier, or did not.
pub(super) fn restored(filled: usize, asked: usize) {
    debug!(target: TARGET, filled, asked, "blocks restored to the prefix cache");
}

/// Emits that KV could not be had back, and how many token rows needed it.
pub(super) fn lost(blocks: &[u32], rows: usize) {
    tracing::warn!(target: TARGET, ?blocks, rows, "KV blocks are lost; their requests are computed again");
}
