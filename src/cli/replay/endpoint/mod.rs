//! Replays a workload through a server that speaks OpenAI's protocol, in real time.
//!
//! Requests are encoded ahead of their time. Latencies count from intended arrivals, as they do for an engine of our own.

mod address;
mod body;
mod client;
mod flags;
mod idle_flags;
mod post;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use hyper::body::Bytes;
use pagedraft::exit::usage_hint;
use pagedraft::session::{ModelRef, open_checkpoint, tokenizer};
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_workloads::measures::RunFacts;
use pagedraft_workloads::replay::PlannedRequest;
use serde_json::json;

pub use self::address::Address;
pub use self::flags::EndpointFlags;
pub use self::idle_flags::refuse as refuse_engine_flags;

use self::body::BodyMaker;
use self::client::Client;
use self::post::Post;
use super::Replay;
use super::outcome::Outcome;
use super::progress::Progress;
use super::real::done_before;
use super::stream::{Drive, Prepared, Target, Teller, Watch};
use super::workload::{Limits, Workload, ordinary_ids};
use crate::cli::live::Before;
use crate::cli::{interrupt, open_files};

/// A server that is sent the requests.
struct Server {
    client: Arc<Client>,
    retries: u32,
}

impl Target for Server {
    type Made = Bytes;

    fn send(&mut self, _: PlannedRequest, body: Bytes, teller: Teller) {
        let post = Post { client: Arc::clone(&self.client), body, retries: self.retries, teller };
        tokio::spawn(post.run());
    }
}

/// Runs the workload to its end or to Ctrl-C; `None` if there are no results.
pub fn run(replay: &Replay, workload: &Workload, address: &Address) -> anyhow::Result<Option<Outcome>> {
    let flags = &replay.run.endpoint;
    open_files::raise();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the runtime of the client does not start")?;
    let client = Client::new(address, flags.api_key(), Duration::from_secs_f64(flags.endpoint_timeout))?;
    let model = interrupt::preparing(|| runtime.block_on(client.greet(flags.endpoint_model.as_deref())))?;
    let limits = Limits {
        max_model_len: replay.engine.max_model_len.unwrap_or(u32::MAX),
        pool_tokens: u64::MAX,
        step_tokens: None,
        vocabulary: vocabulary(replay)?,
    };
    let source = workload.source(&limits)?;
    let bodies = BodyMaker::new(&model, replay.run.save_outputs, &flags.endpoint_body);
    let engine = json!({
        "model_id": model,
        "endpoint": {"url": address.to_string(), "fields": bodies.fields(), "retries": flags.endpoint_retries,
            "timeout_s": flags.endpoint_timeout},
        "seed": replay.engine.seed,
        "max_model_len": replay.engine.max_model_len,
        "revision": pagedraft::REVISION,
    });
    let config = replay.config(engine, workload, &limits, None)?;
    if interrupt::pressed() {
        return Ok(None);
    }
    let (mut recorder, mut before) = (replay.recorder(workload), Before::default());
    let items = workload.survey.items;
    let directory = replay
        .directory_for(&config, |line| done_before(line, &mut before, &mut recorder, &replay.out, items))?;
    let facts = replay.facts(workload);
    let mut watch = Watch { directory, progress: Progress::new("", items, recorder.done()) };
    let drive = Drive {
        target: Server { client: Arc::new(client), retries: flags.endpoint_retries },
        before: &before,
        max_concurrency: replay.arrivals.max_concurrency,
    };
    let prepare = |incoming| Prepared::new(incoming, |request| bodies.body(request));
    let requests = source.map(|incoming| incoming.map(prepare));
    let whole = drive.run(&runtime, requests, &mut recorder, &mut watch);
    watch.progress.end();
    // What is in flight is given up: its connections close, which tells the server.
    drop(runtime);
    let stopped = !whole.with_context(|| format!("the run in {} did not end", replay.out.display()))?;
    let mut summary = recorder.summary();
    summary.describe(RunFacts {
        stopped,
        model_id: Some(model),
        endpoint: Some(address.to_string()),
        replicas: None,
        max_num_seqs: None,
        ..facts
    });
    Ok(Some(Outcome { directory: watch.directory, summary, report: replay.run.reports() }))
}

/// The token ids that prompts without text are made of: those that a run of `--model` itself would use.
fn vocabulary(replay: &Replay) -> anyhow::Result<Range<u32>> {
    let model = &replay.engine.model;
    let tokenizer = tokenizer(model)?;
    let rows = match model {
        ModelRef::Builtin(_) => Some(open_checkpoint(model)?.config().vocab_size),
        ModelRef::Directory(dir) => ModelConfig::open(dir).ok().map(|config| config.vocab_size),
    };
    let size = rows.or_else(|| tokenizer.as_ref().map(|tokenizer| tokenizer.vocab_size())).ok_or_else(|| {
        usage_hint(
            anyhow!("--model {model}: neither its config.json nor its tokenizer.json says how many token ids there are"),
            "name the directory of the model that the server runs, or leave --model out",
        )
    })?;
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    // Token ids in a dataset are the model's own, including special ones.
    Ok(if replay.dataset.has_text() { 0..size } else { ordinary_ids(tokenizer.as_ref(), size) })
}
