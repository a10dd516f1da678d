//! Work on several things at the same time, each by one thread: small products split better by rows than within.

use anyhow::{Result, anyhow};

/// Runs `work` on each of `items`, `shards` at a time, each on a thread of its own that uses no others. Results are in order.
pub fn in_shards<I: Sync, R: Send>(
    items: &[I],
    shards: usize,
    work: impl Fn(&I) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mut results = Vec::with_capacity(items.len());
    for items in items.chunks(shards.max(1)) {
        let done = std::thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> = items
                .iter()
                .map(|item| {
                    scope.spawn(move || {
                        rayon::ThreadPoolBuilder::new().num_threads(1).build()?.install(|| work(item))
                    })
                })
                .collect();
            let joined = running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a training thread panicked"))));
            joined.collect::<Result<Vec<_>>>()
        })?;
        results.extend(done);
    }
    Ok(results)
}
