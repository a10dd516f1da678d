//! Why a request was not taken.

use thiserror::Error;

/// Why an engine did not take a request.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The request itself is wrong, or can never run on this engine. The text says what to change.
    #[error("{0}")]
    Bad(String),
    /// Too many requests wait. Later there may be room.
    #[error("{waiting} requests wait already, and at most {max_queue} may (--max-queue): try again later")]
    QueueFull {
        /// The samples that wait.
        waiting: usize,
        /// The most that may.
        max_queue: usize,
    },
    /// The engine finishes what it has, and takes nothing more.
    #[error("the engine is shutting down and takes no more requests")]
    Draining,
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why an engine's thread could not be started.
#[derive(Debug, Error)]
#[error("no thread for the engine: {0}")]
pub struct StartError(#[from] pub(super) std::io::Error);
