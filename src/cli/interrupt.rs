//! Ctrl-C: once is a request to end in order, twice is an end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use pagedraft::exit;
use pagedraft::session::{RequestId, Session};

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

/// Ends the requests of a batch that was stopped; what they generated is dropped.
pub fn forget(session: &mut Session, ids: &[RequestId]) -> anyhow::Result<()> {
    for &id in ids {
        session.abort(id)?;
        session.take_output(id);
    }
    Ok(())
}
