//! Lets each request go when its time has come.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use pagedraft_workloads::dataset::DatasetError;
use tokio::sync::mpsc::Sender;

use super::Prepared;
use crate::cli::live::{Before, Clock};

/// How long a sleep is at most, so that the end of the run is seen.
const SLEEP: Duration = Duration::from_millis(20);
/// A sleep ends late by about this much, because the system groups wake-ups. The last part of a wait is therefore spent awake.
const AWAKE: Duration = Duration::from_micros(60);

/// Passes on what is prepared, each request at its intended arrival, until nobody takes any more. Records that were done
/// before the run was stopped are left out. It has a thread of its own, because the runtime's timers have a resolution of 1 ms.
pub fn pace<M>(
    first: Result<Prepared<M>, DatasetError>,
    prepared: &Receiver<Result<Prepared<M>, DatasetError>>,
    before: &Before,
    clock: Clock,
    due: &Sender<Result<Prepared<M>, DatasetError>>,
) {
    for next in std::iter::once(first).chain(prepared.iter()) {
        if let Ok(record) = &next {
            if before.done.contains(&record.index()) {
                continue;
            }
            if let Prepared::Request(request, _) = record
                && let Some(at_ns) = request.arrival_ns
                && !wait(clock, at_ns, due)
            {
                return;
            }
        }
        if due.blocking_send(next).is_err() {
            return;
        }
    }
}

/// Waits until the clock shows `at_ns`. Returns `false` if nobody waits for requests any more.
fn wait<T>(clock: Clock, at_ns: u64, due: &Sender<T>) -> bool {
    loop {
        let left = Duration::from_nanos(at_ns.saturating_sub(clock.now_ns()));
        if left.is_zero() {
            return true;
        }
        if left > AWAKE {
            std::thread::sleep((left - AWAKE).min(SLEEP));
            if due.is_closed() {
                return false;
            }
        } else {
            std::hint::spin_loop();
        }
    }
}
