//! Records what the plain engine generates, for synthetic drafts. This is done for all requests of a
//! workload that are not done yet, before it is replayed.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use pagedraft::session::{Request, RequestId, Session};
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::replay::Incoming;

use super::progress::Progress;
use super::workload::bad;
use crate::cli::interrupt;

/// The number of requests in flight. It is enough to fill the steps, however long the workload is.
const IN_FLIGHT: usize = 512;

/// Runs every request of `items` that is not in `done`, without drafts and as fast as possible. Returns the
/// outputs by index. A request that the engine refuses has none. The result is `None` if Ctrl-C ended it.
pub fn record(
    session: &mut Session,
    mut source: impl Iterator<Item = Result<Incoming, DatasetError>>,
    items: u64,
    done: &HashSet<u64>,
) -> anyhow::Result<Option<HashMap<u64, Arc<[u32]>>>> {
    let left = items.saturating_sub(done.len() as u64);
    // It does no harm if the note is lost because standard error is closed.
    let _ = writeln!(
        std::io::stderr(),
        "note: --draft synthetic proposes what the plain engine generates: its {left} requests are run once without drafts first"
    );
    let begun = Instant::now();
    let mut progress = Progress::new("recording: ", left, 0);
    let mut running: HashMap<RequestId, u64> = HashMap::new();
    let mut outputs = HashMap::new();
    // The number of requests to be recorded that have been recorded, skipped or refused.
    let mut passed = 0;
    let mut open = true;
    loop {
        while open && running.len() < IN_FLIGHT && !interrupt::pressed() {
            let planned = match source.next().transpose().map_err(bad)? {
                None => {
                    open = false;
                    break;
                }
                Some(Incoming::Skipped(skipped)) => {
                    passed += u64::from(!done.contains(&skipped.index));
                    continue;
                }
                Some(Incoming::Request(planned)) if done.contains(&planned.index) => continue,
                Some(Incoming::Request(planned)) => planned,
            };
            let mut request = Request::new(planned.index.to_string(), planned.prompt, planned.max_tokens);
            request.ignore_eos = !planned.until_stop;
            // The replay itself reports requests that are refused.
            let ids = session.submit(request).unwrap_or_default();
            passed += u64::from(ids.is_empty());
            running.extend(ids.into_iter().map(|id| (id, planned.index)));
        }
        if interrupt::pressed() {
            progress.end();
            return Ok(None);
        }
        if !session.has_unfinished() {
            break;
        }
        let Some(step) = interrupt::step(session)? else { continue };
        for news in step.emitted.iter().filter(|news| news.finish.is_some()) {
            let index = running.remove(&news.id).context("a request ended that was not sent")?;
            let output = session.take_output(news.id).context("a request gave nothing to record")?;
            outputs.insert(index, Arc::from(output.token_ids));
            passed += 1;
        }
        let tokens = session.step_rows().iter().map(|row| row.new_tokens as u64).sum();
        let requests = || format!("{} running, {} waiting", step.running, step.waiting);
        progress.stepped(tokens, requests, begun.elapsed().as_secs_f64(), passed);
    }
    progress.end();
    Ok(Some(outputs))
}
