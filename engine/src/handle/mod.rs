//! A handle to an engine that runs on a thread of its own: requests go in, and a stream of tokens comes back for each.
//!
//! ```no_run
//! # use pagedraft_engine::handle::{EngineHandle, Limits};
//! # use pagedraft_engine::session::{EngineOptions, ModelRef, Request, Session};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let session = Session::open(&EngineOptions::new(ModelRef::Builtin("target".to_owned())))?;
//! let (engine, thread) = EngineHandle::start(session, Limits::default())?;
//! let mut output = engine.submit(Request::new("first", vec![1, 2, 3], 16)).await?;
//! while let Some(delta) = output.next().await {
//!     print!("{}", delta.text);
//! }
//! engine.drain().await;
//! drop(engine);
//! thread.join()?;
//! # Ok(())
//! # }
//! ```
//!
//! The thread sleeps while nothing runs, and wakes as soon as something arrives. Between two steps it takes in everything that
//! arrived. The tokens of a step are handed out after the step was applied. A step never waits for a reader: a reader that is more
//! than [`Limits::deltas`] steps behind loses its request, and is told so.

mod command;
mod delta;
mod error;
mod flight;
mod histogram;
mod output;
mod spans;
mod stats;
mod thread;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use pagedraft_model::tokenizer::Tokenizer;
use parking_lot::RwLock;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

pub use self::delta::{Delta, End, PromptDelta};
pub use self::error::{StartError, SubmitError};
pub use self::histogram::Histogram;
pub use self::output::Output;
pub use self::stats::Stats;
pub use self::thread::{EnginePanic, EngineThread};

use self::command::{Command, Submission};
use self::thread::Loop;
use crate::session::{CacheEvent, LiveTable, Request, Session, SessionInfo};

/// How much an engine takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most samples that may wait to be admitted. A request that comes while so many wait is refused.
    pub max_queue: usize,
    /// How many steps a reader may be behind.
    pub deltas: usize,
}

/// 2,048 waiting samples, and readers up to 1,024 steps behind.
impl Default for Limits {
    fn default() -> Self {
        Self { max_queue: 2048, deltas: 1024 }
    }
}

/// A handle to a running engine. The engine ends when the last one is dropped, and all outputs are.
#[derive(Clone)]
pub struct EngineHandle {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// What a handle can read without asking the engine's thread.
struct Shared {
    info: SessionInfo,
    tokenizer: Option<Arc<Tokenizer>>,
    stats: RwLock<Stats>,
}

impl EngineHandle {
    /// Starts a thread that runs `session`.
    ///
    /// # Errors
    ///
    /// The system has no thread to give.
    pub fn start(session: Session, limits: Limits) -> Result<(Self, EngineThread), StartError> {
        Self::start_with(session, limits, None)
    }

    /// Starts a thread that runs `session`, and sends `kv_events` after each step what entered and left the prefix cache in it, if
    /// anything did.
    ///
    /// # Errors
    ///
    /// The system has no thread to give.
    pub fn start_telling(
        mut session: Session,
        limits: Limits,
        kv_events: UnboundedSender<Vec<CacheEvent>>,
    ) -> Result<(Self, EngineThread), StartError> {
        session.keep_kv_news();
        Self::start_with(session, limits, Some(kv_events))
    }

    fn start_with(
        session: Session,
        limits: Limits,
        kv_events: Option<UnboundedSender<Vec<CacheEvent>>>,
    ) -> Result<(Self, EngineThread), StartError> {
        let (commands, inbox) = channel();
        let shared = Arc::new(Shared {
            info: session.info().clone(),
            tokenizer: session.shared_tokenizer(),
            stats: RwLock::new(Stats::new(session.info().max_model_len)),
        });
        let thread = Loop::new(session, inbox, Arc::clone(&shared), limits, kv_events).spawn()?;
        Ok((Self { commands, shared }, thread))
    }

    /// How the engine was built.
    pub fn info(&self) -> &SessionInfo {
        &self.shared.info
    }

    /// The model's tokenizer, if it has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.shared.tokenizer.as_ref()
    }

    /// Submits a request. The engine looks at it between two steps. Dropping the output aborts the request, and frees its blocks
    /// before the next step.
    ///
    /// # Errors
    ///
    /// See [`SubmitError`]. Nothing was queued then.
    pub async fn submit(&self, request: Request) -> Result<Output, SubmitError> {
        let (reply, accepted) = oneshot::channel();
        let commands = self.commands.clone();
        let submission = Submission { request, arrived: Instant::now(), reply, commands };
        self.send(Command::Submit(Box::new(submission)))?;
        accepted.await.map_err(|_| SubmitError::Stopped)?
    }

    /// What the engine has done so far, and what it has to do. This copies counters and histograms that the engine's thread brings
    /// up to date after each step.
    pub fn stats(&self) -> Stats {
        self.shared.stats.read().clone()
    }

    /// The block tables of all samples as they are between two steps.
    ///
    /// # Errors
    ///
    /// The engine has stopped.
    pub async fn tables(&self) -> Result<Vec<LiveTable>, SubmitError> {
        let (reply, tables) = oneshot::channel();
        self.send(Command::Tables(reply))?;
        tables.await.map_err(|_| SubmitError::Stopped)
    }

    /// Empties the prefix cache. Blocks of running requests stay.
    ///
    /// # Errors
    ///
    /// The engine has stopped.
    pub async fn reset_prefix_cache(&self) -> Result<(), SubmitError> {
        let (reply, done) = oneshot::channel();
        self.send(Command::ResetPrefixCache(reply))?;
        done.await.map_err(|_| SubmitError::Stopped)
    }

    /// Refuses requests from now on, and returns when none is left. An engine that has stopped has none.
    pub async fn drain(&self) {
        let (reply, done) = oneshot::channel();
        if self.send(Command::Drain(reply)).is_ok() {
            let _ = done.await;
        }
    }

    /// Whether the engine's thread has ended, so that nothing can be asked of it any more.
    pub fn has_stopped(&self) -> bool {
        self.send(Command::Abort(Vec::new())).is_err()
    }

    fn send(&self, command: Command) -> Result<(), SubmitError> {
        self.commands.send(command).map_err(|_| SubmitError::Stopped)
    }
}
