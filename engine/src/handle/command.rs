//! What a handle asks of the engine's thread.

use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::delta::Delta;
use super::error::SubmitError;
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
    pub reply: oneshot::Sender<Result<Accepted, SubmitError>>,
}

/// A request that the engine has queued.
pub(super) struct Accepted {
    /// Its samples, in order.
    pub ids: Vec<RequestId>,
    pub deltas: mpsc::Receiver<Delta>,
}
