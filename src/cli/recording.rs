//! Makes the plain run that the synthetic proposer needs, because it proposes what was recorded.

use std::sync::Arc;

use anyhow::Context;
use pagedraft::session::{DraftRef, EngineOptions, Request, Session};

use super::interrupt;

/// The options of the engine that records, if synthetic drafts are asked for: the same engine without
/// drafts, graphs or a trace.
pub fn plain(options: &EngineOptions) -> Option<EngineOptions> {
    let Some(DraftRef::Synthetic { .. }) = options.speculation.draft else { return None };
    let mut plain = options.clone();
    plain.speculation.draft = None;
    plain.enforce_eager = true;
    plain.shadow_rate = 0.0;
    plain.inject_decode_graph_for_verify = false;
    (plain.trace, plain.attaches_trace, plain.trace_tensors) = (None, false, None);
    Some(plain)
}

/// Runs the requests, and stores in each what it generated, one list per sample. Requests that Ctrl-C
/// prevents stay without.
pub fn record<'a>(
    session: &mut Session,
    requests: impl Iterator<Item = &'a mut Request>,
) -> anyhow::Result<()> {
    let mut waiting = Vec::new();
    for request in requests {
        if interrupt::pressed() {
            break;
        }
        let ids = session.submit(request.clone())?;
        waiting.push((request, ids));
    }
    while session.has_unfinished() && !interrupt::pressed() {
        interrupt::step(session)?;
    }
    // The last one goes first, because the scheduler searches its queue of waiting requests from the end.
    // Samples of a request keep their order.
    for (request, ids) in waiting.into_iter().rev() {
        ids.iter().rev().try_for_each(|&id| session.abort(id))?;
        for id in ids {
            let output = session.take_output(id).context("a request gave nothing to record")?;
            request.recorded.push(Arc::from(output.token_ids));
        }
    }
    Ok(())
}
