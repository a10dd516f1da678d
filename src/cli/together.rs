//! Requests that are run together, to their end.

use anyhow::{Context, ensure};
use pagedraft::session::{Request, RequestOutput, Session};

use super::interrupt;

/// Runs requests together; their outputs in order, or `None` if Ctrl-C ended them.
pub fn run(session: &mut Session, requests: Vec<Request>) -> anyhow::Result<Option<Vec<RequestOutput>>> {
    let mut ids = Vec::with_capacity(requests.len());
    for request in requests {
        ids.extend(session.submit(request)?);
    }
    while session.has_unfinished() {
        if interrupt::pressed() {
            interrupt::forget(session, &ids)?;
            return Ok(None);
        }
        interrupt::step(session)?;
    }
    let outputs = ids.into_iter().map(|id| {
        let output = session.take_output(id).context("a request gave no output")?;
        ensure!(output.error.is_none(), "{}", output.error.as_deref().unwrap_or_default());
        Ok(output)
    });
    outputs.collect::<anyhow::Result<_>>().map(Some)
}
