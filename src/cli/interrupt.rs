//! Handles Ctrl-C. The first one asks the program to end in order, the second one ends it at once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use pagedraft::exit;
use pagedraft::session::{RequestId, Session, SessionStep};
use parking_lot::Mutex;

/// How often a wait checks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(20);

/// How long a preparation may go on after Ctrl-C. Then the process ends in the middle of it.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long requests that nobody waits for are released one by one. The system frees the rest faster.
const GIVING_BACK: Duration = Duration::from_millis(200);

/// Set at the first Ctrl-C. Engines look at it in the middle of a step.
static PRESSED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether the process does something that it can't be called back from, and that has nothing to show for yet.
static PREPARES: AtomicBool = AtomicBool::new(false);
/// Files and directories that are removed if the process ends in the middle of a preparation.
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Directories of this process that are removed with all that is in them then.
static TREES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static SET: OnceLock<Result<(), String>> = OnceLock::new();

/// From now on Ctrl-C only sets a flag.
pub fn listen() -> anyhow::Result<()> {
    let pressed = || {
        if PRESSED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
        end_a_preparation();
    };
    let set = SET.get_or_init(|| ctrlc::set_handler(pressed).map_err(|e| e.to_string()));
    set.clone().map_err(anyhow::Error::msg).context("can't listen for Ctrl-C")
}

/// Ends the process after [`PATIENCE`], if it is in the middle of a preparation then.
fn end_a_preparation() {
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        if PREPARES.load(Ordering::Relaxed) {
            for path in TEMPORARY.lock().iter() {
                // This removes directories only if they are empty by then.
                let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
            }
            for tree in TREES.lock().iter() {
                let _ = std::fs::remove_dir_all(tree);
            }
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
    });
}

/// Whether Ctrl-C was pressed.
pub fn pressed() -> bool {
    PRESSED.load(Ordering::Relaxed)
}

/// Whether Ctrl-C was pressed since the last call: it is then taken as an answer to what goes on now, and not as the end of the program.
pub fn take() -> bool {
    PRESSED.swap(false, Ordering::Relaxed)
}

/// What is set when it was pressed, for engines to look at in the middle of a step.
pub fn flag() -> Arc<AtomicBool> {
    Arc::clone(&PRESSED)
}

/// Runs a step; `None` where Ctrl-C ended it in the middle, so that nothing came of it.
pub fn step(session: &mut Session) -> anyhow::Result<Option<SessionStep>> {
    match session.step() {
        Err(error) if error.is_interrupt() => Ok(None),
        step => Ok(Some(step?)),
    }
}

/// Runs `work`, which takes long before anything can be shown, such as loading a model. Ctrl-C then soon
/// ends the process, and its temporary files are removed.
pub fn preparing<T>(work: impl FnOnce() -> T) -> T {
    PREPARES.store(true, Ordering::Relaxed);
    if pressed() {
        end_a_preparation();
    }
    let done = work();
    PREPARES.store(false, Ordering::Relaxed);
    done
}

/// Asks that a file, or a directory if it is empty, be removed if Ctrl-C ends the process in the middle of
/// a preparation. In all other cases whoever made it removes it.
pub fn remove_with_the_process(path: PathBuf) {
    TEMPORARY.lock().push(path);
}

/// The same for a directory that this process has made for itself, with all that is in it.
pub fn remove_tree_with_the_process(path: PathBuf) {
    TREES.lock().push(path);
}

/// Runs work without steps between which Ctrl-C could be checked, such as reading a large file. It runs on
/// a thread of its own. After Ctrl-C the result is `None`, and the thread is left to end with the process.
pub fn or_done<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<Option<T>> {
    let (send, done) = sync_channel(1);
    // If nobody waits for the result any more, it is dropped.
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

/// Aborts the requests of a batch that was stopped, and drops what they generated. If the batch is huge
/// only some are aborted, because the process is about to end and must not take long.
pub fn forget(session: &mut Session, ids: &[RequestId]) -> anyhow::Result<()> {
    let until = Instant::now() + GIVING_BACK;
    // The last one goes first, because the scheduler searches its queue of waiting requests from the end.
    for &id in ids.iter().rev() {
        if Instant::now() > until {
            break;
        }
        session.abort(id)?;
        session.take_output(id);
    }
    Ok(())
}
