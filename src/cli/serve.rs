//! `pagedraft serve` answers over HTTP as OpenAI's servers do.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use pagedraft::engine::handle::{EngineHandle, Limits as EngineLimits};
use pagedraft::exit::{usage, usage_hint};
use pagedraft::serve::{ChatTemplate, Limits, ServeOptions, Server};
use pagedraft::session::{CacheEvent, ModelRef, Session};
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;

use super::engine_flags::{EngineFlags, bytes};
use super::{Ended, interrupt, open_files, recording, stdout};

/// How often a running server looks whether it was told to end.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    server: ServerFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
struct ServerFlags {
    /// The address to listen at (0.0.0.0: at all of them)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen at (0: any that is free)
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// A key that requests must have (may be given several times; without one everybody is let in)
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    api_key: Vec<String>,
    /// The name that clients give the model (may be given several times; default: what --model says)
    #[arg(long, value_name = "NAME")]
    served_model_name: Vec<String>,
    /// A Jinja file that makes the prompt of a chat (default: the model's own)
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Most samples that may wait; requests that come then are refused
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_queue: usize,
    /// Most bytes of a request
    #[arg(long, value_name = "BYTES", default_value = "32M", value_parser = bytes)]
    max_body: u64,
    /// How long requests may go on after Ctrl-C or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace_period: u32,
    /// Tell routers here, over ZeroMQ, what enters and leaves the prefix cache (as tcp://*:5557)
    #[arg(long, value_name = "ENDPOINT")]
    kv_events: Option<String>,
    /// Repeat here what a router missed of --kv-events
    #[arg(long, value_name = "ENDPOINT", requires = "kv_events")]
    kv_events_replay: Option<String>,
    /// Let requests ask which keys the indexers of a model with sparse attention chose for each token
    #[arg(long)]
    return_indexer_topk: bool,
}

impl Serve {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let mut options = self.engine.options(true)?;
        // A step ends before the server does: what runs has its time of grace.
        options.interrupt = None;
        options.return_indexer_topk = self.server.return_indexer_topk;
        if recording::plain(&options).is_some() {
            let error = anyhow::anyhow!(
                "--draft synthetic proposes what a run without drafts gave, and nobody knows what a server will be asked"
            );
            return Err(usage_hint(error, "choose another --draft"));
        }
        let template = chat_template(&self.engine.model, self.server.chat_template.as_deref())?;
        // Who has the port is known before the model is loaded, which may take long.
        let listener = self.server.listen()?;
        open_files::raise();
        self.engine.tell_what_is_idle();
        interrupt::listen()?;
        let session = interrupt::preparing(|| Session::open(&options))?;
        self.engine.tell_of_the_device(session.info());
        self.engine.refuse_for_canvases(session.info())?;
        let capacity = session.capacity().saturating_add(1);
        let limits = EngineLimits { max_queue: self.server.max_queue, ..EngineLimits::default() };
        let kv_events = self.server.kv_events(session.info().block_size)?;
        let (engine, thread) = match kv_events {
            Some(told) => EngineHandle::start_telling(session, limits, told)?,
            None => EngineHandle::start(session, limits)?,
        };
        let most = Limits::default();
        let served = ServeOptions {
            names: self.server.names(&self.engine.model),
            keys: self.server.api_key.clone(),
            template,
            capacity,
            limits: Limits {
                body_bytes: usize::try_from(self.server.max_body).unwrap_or(usize::MAX),
                samples: most.samples.max(self.server.max_queue),
                grace: Duration::from_secs(self.server.grace_period.into()),
                ..most
            },
        };
        let address = listener.local_addr().context("the listener has no address")?;
        stdout::print(&format!("listening on http://{address}\n"))?;
        Server::new(engine, served).run(listener, told_to_end()).context("the server failed")?;
        let mut session = thread.join()?;
        self.engine.tell_of_the_tiers(&mut session);
        session.close(&json!({"command": "serve"}))?;
        Ok(Ended::Done)
    }
}

/// Waits for Ctrl-C or SIGTERM. A second one ends the process at once.
async fn told_to_end() {
    while !interrupt::pressed() {
        tokio::time::sleep(LOOK).await;
    }
}

/// The template that makes the prompt of a chat: the one in `file`, or the model's own, if there is any.
pub(super) fn chat_template(model: &ModelRef, file: Option<&Path>) -> anyhow::Result<Option<ChatTemplate>> {
    if let ModelRef::Directory(dir) = model
        && !dir.exists()
    {
        let error = anyhow::anyhow!("--model {model}: there is no such directory or file");
        return Err(usage_hint(error, "name a model's directory, a GGUF file or builtin:NAME"));
    }
    let template = match (model, file) {
        (ModelRef::Directory(gguf), file) if gguf.is_file() => ChatTemplate::of_gguf(gguf, file),
        (ModelRef::Directory(dir), file) => ChatTemplate::of_directory(dir, file),
        (ModelRef::Builtin(_), Some(file)) => ChatTemplate::open(file).map(Some),
        (ModelRef::Builtin(_), None) => ChatTemplate::builtin().map(Some),
    };
    template.map_err(usage)
}

impl ServerFlags {
    fn names(&self, model: &ModelRef) -> Vec<String> {
        match self.served_model_name.as_slice() {
            [] => vec![model.to_string()],
            names => names.to_vec(),
        }
    }

    /// Where the engine tells what enters and leaves its prefix cache, if anybody is to know.
    fn kv_events(&self, block_size: u32) -> anyhow::Result<Option<UnboundedSender<Vec<CacheEvent>>>> {
        let Some(endpoint) = &self.kv_events else { return Ok(None) };
        let told = pagedraft::serve::publish(endpoint, self.kv_events_replay.as_deref(), block_size);
        let hint = "an endpoint is tcp://ADDRESS:PORT, with an address of this machine or *, and a port that is free";
        told.map(Some).map_err(|error| usage_hint(error.into(), hint))
    }

    fn listen(&self) -> anyhow::Result<TcpListener> {
        let address = SocketAddr::new(self.host, self.port);
        TcpListener::bind(address).map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    "another server runs there: end it, or choose another --port"
                }
                std::io::ErrorKind::AddrNotAvailable => {
                    "this machine has no such address: choose another --host"
                }
                _ => "choose another --host or --port",
            };
            usage_hint(anyhow::Error::new(error).context(format!("can't listen on {address}")), hint)
        })
    }
}
