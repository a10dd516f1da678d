//! Ctrl-C: once is a request to end in order, twice is an end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::Context;
use pagedraft::exit;
use pagedraft::session::{RequestId, Session};

/// How often a wait looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(20);

static PRESSED: AtomicBool = AtomicBool::new(false);
static SET: OnceLock<Result<(), String>> = OnceLock::new();

/// From here on Ctrl-C is a flag to look at.
pub fn listen() -> anyhow::Result<()> {
    let pressed = || {
        if PRESSED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
    };
    let set = SET.get_or_init(|| ctrlc::set_handler(pressed).map_err(|e| e.to_string()));
    set.clone().map_err(anyhow::Error::msg).context("can't listen for Ctrl-C")
}

/// Whether it was pressed.
pub fn pressed() -> bool {
    PRESSED.load(Ordering::Relaxed)
}

/// Does what has no steps to look for Ctrl-C between, such as reading a large file: on a thread of its own, which a Ctrl-C leaves to
/// end with the process; `None` then.
pub fn or_done<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<Option<T>> {
    let (send, done) = sync_channel(1);
    // Where nobody waits for it any more it is dropped.
    let thread = std::thread::spawn(move || drop(send.send(work())));
    loop {
        match done.recv_timeout(LOOK) {
            Ok(result) => return result.map(Some),
            Err(_) if pressed() => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => anyhow::bail!("a thread ended without its result"),
            },
        }
    }
}

/// Ends the requests of a batch that was stopped; what they generated is dropped.
pub fn forget(session: &mut Session, ids: &[RequestId]) -> anyhow::Result<()> {
    for &id in ids {
        session.abort(id)?;
        session.take_output(id);
    }
    Ok(())
}
