//! `pagedraft replay`: a dataset or a trace through the engine, in real or in virtual time, or through a server.
//!
//! A first pass reads the workload to its end, so that a run begins only if all of it can be read. Then the
//! engine is given each request when its time has come. Latencies count from that time, however late a step
//! lets the engine accept it. The results are in the run's directory.

mod arrival_flags;
mod dataset_flags;
mod endpoint;
mod fleet;
mod numbers;
mod outcome;
mod progress;
mod real;
mod recorded;
mod run_flags;
mod simulated;
mod slo_flag;
mod stream;
mod table;
pub mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::anyhow;
use clap::Args;
use pagedraft::exit::{usage, usage_hint};
use pagedraft::session::{DraftRef, EngineOptions, ModelRef, tokenizer};
use pagedraft_workloads::Error;
use pagedraft_workloads::measures::{Recorder, RecorderOptions, RunFacts};
use pagedraft_workloads::prompt::TextTokens;
use pagedraft_workloads::replay::RequestLine;
use pagedraft_workloads::run::{LineFormat, REQUESTS_FILE, RunDirectory};
use pagedraft_workloads::sim::CostModel;
use pagedraft_workloads::trace::{CONFIG_FILE, TraceWriter};
use serde_json::{Value, json};

use super::engine_flags::{EngineFlags, note};
use super::output_file::OutputFile;
use super::{Ended, interrupt};
use arrival_flags::ArrivalFlags;
use dataset_flags::DatasetFlags;
use numbers::name_of;
use run_flags::RunFlags;
use workload::{Encoder, Limits, Workload};

#[derive(Clone, Debug, Args)]
pub struct Replay {
    #[command(flatten)]
    dataset: DatasetFlags,
    #[command(flatten)]
    arrivals: ArrivalFlags,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    engine: EngineFlags,
    /// The directory. It is named only once, so that all files of a run agree.
    #[arg(skip)]
    out: PathBuf,
}

impl Replay {
    pub fn run(mut self) -> anyhow::Result<Ended> {
        self.out = self.run.directory(&self.dataset.name());
        self.check()?;
        let output = self.run.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        if !self.run.simulates() && !self.run.asks_a_server() {
            self.engine.tell_what_is_idle();
        }
        interrupt::listen()?;
        let workload = Workload::survey(&self.dataset, &self.arrivals, self.engine.seed, self.tokenizer()?)?;
        let Some(workload) = workload else { return Ok(Ended::Interrupted) };
        let outcome = match &self.run.endpoint.endpoint {
            Some(address) => endpoint::run(&self, &workload, address)?,
            None if self.run.simulates() => simulated::run(&self, &workload)?,
            None => match self.run.replicas.unwrap_or(1) {
                1 => real::run(&self, &workload)?,
                replicas => fleet::run(&self, &workload, replicas)?,
            },
        };
        match outcome {
            Some(outcome) => outcome.write(output.as_ref()),
            None => Ok(Ended::Interrupted),
        }
    }

    /// Refuses whatever can be seen to be wrong before anything is read.
    fn check(&self) -> anyhow::Result<()> {
        self.run.check()?;
        if self.run.asks_a_server() {
            endpoint::refuse_engine_flags()?;
        }
        self.dataset.options(self.engine.seed)?;
        if self.run.simulates() {
            let why = "a simulated engine computes no attention that could be recorded";
            self.engine.refuse_trace_dsa(why)?;
            self.engine.tensors.refuse(why)?;
        } else if !self.run.traces() {
            let why = "these records lie in the trace, and --no-trace says that there is none";
            self.engine.refuse_trace_dsa(why)?;
            self.engine.tensors.refuse(why)?;
        }
        if self.run.simulates() {
            self.check_models()?;
        }
        if self.engine.trace_format != LineFormat::default() && !self.run.traces() {
            return Err(usage_hint(
                anyhow!("--trace-format: this run writes no trace"),
                if self.run.simulates() {
                    "add --trace-steps, or leave it out"
                } else {
                    "leave out --no-trace, or this"
                },
            ));
        }
        if self.engine.trace_out.is_some() {
            return Err(usage_hint(
                anyhow!("--trace-out: the trace of a replay lies in its run directory"),
                "name that with --out",
            ));
        }
        self.check_directory()
    }

    /// Refuses models that are not there: a simulation reads no more of them than their windows, so that a name misspelt would mean
    /// something.
    fn check_models(&self) -> anyhow::Result<()> {
        let options = self.engine_options()?;
        let draft = match &options.speculation.draft {
            Some(DraftRef::Model(model)) => Some(("--draft", model)),
            _ => None,
        };
        for (flag, model) in [("--model", &options.model)].into_iter().chain(draft) {
            match model {
                ModelRef::Directory(path) if !path.exists() => {
                    return Err(usage_hint(
                        anyhow!("{flag} {model}: there is no such directory or file"),
                        "name a model's directory, a GGUF file or builtin:NAME (drafts: also ngram, suffix or synthetic:RATE)",
                    ));
                }
                ModelRef::Directory(_) => {}
                ModelRef::Builtin(_) => drop(tokenizer(model)?),
            }
        }
        Ok(())
    }

    /// Refuses a directory that holds a run already, or, to resume, one that holds none. This comes before
    /// a model is loaded.
    fn check_directory(&self) -> anyhow::Result<()> {
        let out = &self.out;
        if out.exists() && !out.is_dir() {
            return Err(usage(anyhow!("--out {}: it is not a directory", out.display())));
        }
        if self.run.resume {
            if !out.join(CONFIG_FILE).exists() {
                return Err(usage_hint(
                    anyhow!("--resume: {} holds no run", out.display()),
                    "start one without --resume",
                ));
            }
            return Ok(());
        }
        let requests = out.join(REQUESTS_FILE).exists().then(|| REQUESTS_FILE.to_owned());
        if let Some(file) = TraceWriter::occupied(out).or(requests) {
            return Err(usage_hint(
                anyhow!("run directory {} holds a {file} already", out.display()),
                "name another directory with --out, or go on with a run that was stopped: --resume",
            ));
        }
        Ok(())
    }

    fn engine_options(&self) -> anyhow::Result<EngineOptions> {
        let options = self.engine.options(true)?;
        let attaches_trace = !self.run.simulates() && self.run.traces();
        Ok(EngineOptions { attaches_trace, ..options })
    }

    /// The tokenizer of the model, where the workload has text.
    fn tokenizer(&self) -> anyhow::Result<Option<Arc<dyn TextTokens>>> {
        if !self.dataset.has_text() {
            return Ok(None);
        }
        let found = tokenizer(&self.engine.model)?;
        Ok(found.map(|tokenizer| Arc::new(Encoder(Arc::new(tokenizer))) as Arc<dyn TextTokens>))
    }

    /// The most tokens of a prompt, if it must fit in one step.
    fn step_tokens(&self) -> Option<u32> {
        let chunks = self.engine_options().map_or(true, |options| options.enable_chunked_prefill);
        (!chunks).then_some(self.engine.max_num_batched_tokens)
    }

    fn recorder(&self, workload: &Workload) -> Recorder {
        Recorder::new(RecorderOptions {
            slo: self.run.goals(),
            items: workload.survey.items,
            block_size: self.engine.block_size,
            rate_asked: workload.arrivals.rate_asked(),
            save_outputs: self.run.save_outputs,
            server: self.run.streams(),
        })
    }

    /// The facts that the recorder can't know, of a run that begins now.
    fn facts(&self, workload: &Workload) -> RunFacts {
        let simulates = self.run.simulates();
        RunFacts {
            // A run in virtual time is the same every time, so it has no date.
            date: (!simulates).then(|| super::stamp::compact(SystemTime::now())),
            label: self.out.file_name().map(|name| name.to_string_lossy().into_owned()),
            model_id: (!simulates).then(|| self.engine.model.to_string()),
            tokenizer_id: self.dataset.has_text().then(|| self.engine.model.to_string()),
            max_concurrency: self.arrivals.max_concurrency,
            workload: Some(self.dataset.name()),
            executor: Some(self.run.executor_name().to_owned()),
            seed: Some(self.engine.seed),
            revision: Some(pagedraft::REVISION.to_owned()),
            replicas: Some(self.run.replicas.unwrap_or(1)),
            router: self.run.routes().then(|| name_of(&self.run.router.unwrap_or_default())),
            arrivals: Some(workload.arrivals),
            max_num_seqs: Some(self.engine.max_num_seqs),
            max_new_tokens: self.dataset.max_new_tokens,
            ..RunFacts::default()
        }
    }

    /// `config.json`: the engine's configuration, and how the workload is replayed.
    fn config(
        &self,
        engine: Value,
        workload: &Workload,
        limits: &Limits,
        cost: Option<&CostModel>,
    ) -> anyhow::Result<Value> {
        let mut config = engine;
        let mut replay = workload.config(limits)?;
        let more = json!({
            "workload": self.dataset.name(),
            "executor": self.run.executor_name(),
            "cost_model": cost,
            "replicas": (!self.run.asks_a_server()).then(|| self.run.replicas.unwrap_or(1)),
            "router": (!self.run.asks_a_server()).then(|| self.run.router.unwrap_or_default()),
            "slo": self.run.goals(),
            "save_outputs": self.run.save_outputs,
            "trace": self.run.traces(),
            "seed": self.engine.seed,
            "date": super::stamp::date(SystemTime::now()),
            "out": self.out.to_string_lossy(),
            "revision": pagedraft::REVISION,
        });
        if let (Some(replay), Value::Object(more)) = (replay.as_object_mut(), more) {
            replay.extend(more);
        }
        if let Some(fields) = config.as_object_mut() {
            fields.insert("trace_tables".to_owned(), json!(self.engine.tables()));
            fields.insert("replay".to_owned(), replay);
        }
        Ok(config)
    }

    /// The trace of the run's steps, if there is one.
    fn trace_in(&self, directory: &RunDirectory) -> anyhow::Result<Option<TraceWriter>> {
        let writer = self.run.traces().then(|| directory.trace(self.engine.trace_format)).transpose();
        writer.map_err(|e| usage(e.into()))
    }

    /// The run's directory, either new or as a stopped run left it. When a run in real time is resumed,
    /// `before` is called with the lines that are there.
    fn directory_for(
        &self,
        config: &Value,
        before: impl FnMut(&RequestLine) -> anyhow::Result<()>,
    ) -> anyhow::Result<RunDirectory> {
        let made = match (self.run.resume, self.run.simulates()) {
            (false, _) => RunDirectory::create(&self.out, config),
            (true, false) => {
                return RunDirectory::resume(&self.out, config, before).map_err(|error: anyhow::Error| {
                    // Errors of `before` are marked already.
                    error.downcast::<Error>().map_or_else(|other| other, |error| usage(error.into()))
                });
            }
            // The simulation is repeated from its beginning, and gives the same lines.
            (true, true) => {
                note("--resume: a simulation is made again from its beginning, which gives the same lines");
                RunDirectory::repeat(&self.out, config)
            }
        };
        made.map_err(|e| usage(e.into()))
    }
}
