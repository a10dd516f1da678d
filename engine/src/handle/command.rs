//! What a handle asks of the engine's thread.

use std::sync::mpsc::Sender;
use std::time::Instant;

use tokio::sync::oneshot;

use super::error::SubmitError;
use super::output::Output;
use crate::session::{LiveTable, Request, RequestId};

/// A request of a handle.
pub(super) enum Command {
    Submit(Box<Submission>),
    /// Nobody reads the output of these samples any more.
    Abort(Vec<RequestId>),
    Tables(oneshot::Sender<Vec<LiveTable>>),
    ResetPrefixCache(oneshot::Sender<()>),
    /// To refuse requests from now on, and to answer when nothing runs.
    Drain(oneshot::Sender<()>),
}

/// A request that was submitted.
pub(super) struct Submission {
    pub request: Request,
    pub arrived: Instant,
    /// Takes the output. Its caller may be gone by then: an output that nobody takes is dropped, which aborts the request.
    pub reply: oneshot::Sender<Result<Output, SubmitError>>,
    /// What the output asks of the engine's thread goes here.
    pub commands: Sender<Command>,
}
