//! What the plain engine generates, for synthetic drafts: all of a workload, before it is replayed.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use pagedraft::session::{Request, RequestId, Session};
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::replay::Incoming;

use super::workload::bad;
use crate::cli::interrupt;

/// Requests in flight: enough to fill the steps, whatever the workload's length.
const IN_FLIGHT: usize = 512;

/// Runs every request without drafts, as fast as it goes; the outputs by index. What the engine refuses has none; Ctrl-C ends
/// it early.
pub fn record(
    session: &mut Session,
    source: impl Iterator<Item = Result<Incoming, DatasetError>>,
    items: u64,
) -> anyhow::Result<HashMap<u64, Arc<[u32]>>> {
    // A closed standard error is nobody's loss.
    let _ = writeln!(
        std::io::stderr(),
        "note: --draft synthetic proposes what the plain engine generates: its {items} requests are run once without drafts first"
    );
    let mut requests = source.filter_map(|incoming| match incoming {
        Ok(Incoming::Request(request)) => Some(Ok(request)),
        Ok(Incoming::Skipped(_)) => None,
        Err(error) => Some(Err(bad(error))),
    });
    let mut running: HashMap<RequestId, u64> = HashMap::new();
    let mut outputs = HashMap::new();
    let mut open = true;
    while !interrupt::pressed() {
        while open && running.len() < IN_FLIGHT {
            let Some(planned) = requests.next().transpose()? else {
                open = false;
                break;
            };
            let mut request = Request::new(planned.index.to_string(), planned.prompt, planned.max_tokens);
            request.ignore_eos = !planned.until_stop;
            // The replay itself tells of what is refused.
            let ids = session.submit(request).unwrap_or_default();
            running.extend(ids.into_iter().map(|id| (id, planned.index)));
        }
        if !session.has_unfinished() {
            break;
        }
        for news in session.step()?.emitted.iter().filter(|news| news.finish.is_some()) {
            let index = running.remove(&news.id).context("a request ended that was not sent")?;
            let output = session.take_output(news.id).context("a request gave nothing to record")?;
            outputs.insert(index, Arc::from(output.token_ids));
        }
    }
    Ok(outputs)
}
