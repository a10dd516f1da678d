//! The plain run that the synthetic proposer needs: it proposes what was recorded.

use std::sync::Arc;

use anyhow::Context;
use pagedraft::session::{DraftRef, EngineOptions, Request, Session};

use super::interrupt;

/// The engine that records, where the options ask for synthetic drafts: the same one without drafts, graphs or a trace.
pub fn plain(options: &EngineOptions) -> Option<EngineOptions> {
    let Some(DraftRef::Synthetic { .. }) = options.speculation.draft else { return None };
    let mut plain = options.clone();
    plain.speculation.draft = None;
    plain.enforce_eager = true;
    plain.shadow_rate = 0.0;
    plain.inject_decode_graph_for_verify = false;
    plain.trace = None;
    Some(plain)
}

/// Runs the requests, and notes in each what it generated, a list a sample. What Ctrl-C leaves undone stays empty.
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
    // The last first, since that is how the scheduler finds those that still wait; samples of a request keep their order.
    for (request, ids) in waiting.into_iter().rev() {
        ids.iter().rev().try_for_each(|&id| session.abort(id))?;
        for id in ids {
            let output = session.take_output(id).context("a request gave nothing to record")?;
            request.recorded.push(Arc::from(output.token_ids));
        }
    }
    Ok(())
}
