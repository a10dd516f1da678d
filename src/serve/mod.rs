//! An HTTP server for one engine, which talks as OpenAI's servers do.
//!
//! [`Server::run`] serves on the thread that calls it, and the engine runs on its own. A request is read and checked here, its text is
//! tokenised, and it is handed to the engine ([`EngineHandle::submit`]). What comes back is written out at once, as JSON or as events of
//! a stream. A client that goes away drops the engine's output, which ends its request within a step.
//!
//! Nothing is decided here: how tokens are chosen, who waits and who is preempted is the engine's. Fields that it can't honour are
//! refused by name, and never ignored silently; fields that nobody knows are passed over, because routers add their own.

mod answer;
mod app;
mod ask;
mod auth;
mod bodies;
mod body;
mod chat;
mod completions;
mod connections;
mod error;
mod generation;
mod kv_publisher;
mod logprobs;
mod metrics;
mod page;
mod parameters;
mod patient;
mod prompt;
mod python_json;
mod routes;
mod stopped;
mod teller;
mod template;
mod token_text;
mod tokenize;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use pagedraft_engine::handle::EngineHandle;
use tokio::sync::watch;

pub use app::Limits;
pub use bodies::Refusal;
pub use kv_publisher::{PublishError, publish};
pub use template::{Asked, ChatTemplate, Message};

use app::{App, Serial};
use auth::Keys;
use connections::Signals;

/// How an engine is served.
#[derive(Debug, Default)]
pub struct ServeOptions {
    /// The names by which clients ask for the model, at least one. The first one stands in answers.
    pub names: Vec<String>,
    /// The keys of which requests must have one; none lets everybody in.
    pub keys: Vec<String>,
    /// How the messages of a chat become a prompt. Without it chats are refused.
    pub template: Option<ChatTemplate>,
    /// The most tokens that prompt and answer can have together: the least of the model's length and of what the KV pool holds
    /// ([`Session::capacity`](crate::session::Session::capacity)).
    pub capacity: u32,
    /// How much of a client is borne.
    pub limits: Limits,
}

/// A server for an engine.
pub struct Server {
    app: Arc<App>,
    signals: Signals,
}

impl Server {
    /// A server that has not begun to serve.
    pub fn new(engine: EngineHandle, options: ServeOptions) -> Self {
        let (draining, drains) = watch::channel(false);
        let (cut, cuts) = watch::channel(false);
        let app = App {
            engine,
            names: options.names,
            template: options.template,
            keys: Keys::new(&options.keys),
            limits: options.limits,
            capacity: options.capacity,
            started: app::now(),
            cut: cuts,
            draining: drains,
            serial: Serial::default(),
        };
        Self { app: Arc::new(app), signals: Signals { draining, cut } }
    }

    /// Serves until `stop` is ready. Then new requests are refused, those that run go on for the time of grace, and it returns. No
    /// handle of the engine is left in it then.
    ///
    /// # Errors
    ///
    /// The system gives no runtime, or the listener can't be used.
    pub fn run(self, listener: TcpListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        let Self { app, signals } = self;
        // One thread: what it does is little, and the cores are the engine's. Long texts are tokenised on another.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(2)
            .thread_name("tokenize")
            .build()?;
        listener.set_nonblocking(true)?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let router = routes::router(Arc::clone(&app));
            connections::serve(app, router, listener, signals, stop).await;
            Ok(())
        })
    }
}
