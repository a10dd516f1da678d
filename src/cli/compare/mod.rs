//! `pagedraft bench compare`: {no speculation, n-gram, batch expansion, MQA} x {eager, graph} on the same requests.
//!
//! There is one session, whose weights are loaded once. First comes a plain eager batch that keeps every
//! hidden state and every logit. Then a batch of each run is compared with it, bit by bit. Then come the
//! timed batches. They are interleaved: each iteration times every run once, and no run is always first.

mod batch;
mod dump;
mod measured;
mod parity;
mod picture;
mod report;
mod run_directory;
mod runs;
mod table;

use std::io::Write;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use pagedraft::exit::{usage, usage_hint};
use pagedraft::session::{DraftLength, DraftRef, EngineOptions, ModelRef, Session, SetupId};
use pagedraft_model::cpu::MemoryLimit;
use serde_json::{Value, json};

use super::batch_header::{BatchShape, header, plural};
use super::engine_flags::EngineFlags;
use super::output_file::OutputFile;
use super::{Ended, held_out, interrupt, stdout};
use batch::{Batch, Pass, Unobserved};
use dump::{Both, FirstVerify};
use measured::Measured;
use parity::{Parity, Reference};
use report::Report;
use run_directory::RunDirectory;
use runs::{RUNS, Run, Way};

#[derive(Clone, Debug, Args)]
pub struct Compare {
    /// Prompt tokens of each request
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    input_len: u32,
    /// Tokens that each request generates
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    output_len: u32,
    /// Requests of a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Batches of every run before those that are timed
    #[arg(long, value_name = "N", default_value_t = 2)]
    num_iters_warmup: u32,
    /// Timed batches of every run
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    /// Write what the first verify step of each run was given to this file
    ///
    /// Block tables of replayed steps are written as a graph of fixed shape has them, padded with zeroes to the longest
    /// sequence (`block_tables_padded_to`); this engine's own graphs read them unpadded.
    #[arg(long, value_name = "FILE")]
    dump_metadata: Option<PathBuf>,
    /// Directory for the figures and their picture (default: runs/compare-DATE-TIME)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

/// The state of a comparison.
struct Comparison {
    session: Session,
    batch: Batch,
    setups: Vec<SetupId>,
    runs: Vec<Measured>,
    bar: ProgressBar,
}

impl Compare {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let options = self.options()?;
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        let dump = self.dump_metadata.as_deref().map(OutputFile::reserve).transpose()?;
        let directory = RunDirectory::reserve(self.out.as_deref())?;
        self.engine.tell_what_is_not_captured();
        interrupt::listen()?;
        let mut comparison = self.prepare(&options)?;
        let info = comparison.session.info().clone();
        stdout::print(&self.header(&comparison, &options))?;
        let dumped = comparison.measure(self)?;
        comparison.bar.finish_and_clear();
        let report = Report {
            info: &info,
            shape: self.shape(),
            speculation: &options.speculation,
            runs: &comparison.runs,
            canary: comparison.session.canary_report(),
            shadow_rate: self.engine.shadow_rate,
            fault: self.engine.inject_fault.is_some(),
        };
        let json = report.json();
        comparison.session.close(&json)?;
        stdout::print(&table::text(&report))?;
        if report.iterations() > 0 {
            let json = format!("{json:#}\n");
            directory.write(&format!("{:#}\n", report.config()), &json, &picture::svg(&report)?)?;
            stdout::print(&format!("\nrun directory: {}\n", directory.path().display()))?;
            output.iter().try_for_each(|output| output.write(&json))?;
        }
        if let (Some(file), Some(found)) = (&dump, dumped) {
            self.write_dump(file, found, &options)?;
        }
        Ok(match (report.iterations() < self.num_iters as usize, report.is_equal()) {
            (true, _) => Ended::Interrupted,
            (false, false) => Ended::Difference,
            (false, true) => Ended::Done,
        })
    }

    fn options(&self) -> anyhow::Result<EngineOptions> {
        let mut options = self.engine.options(false)?;
        // The setup of half of the runs makes them eager. Alarms are counted here and do not fail a step.
        options.enforce_eager = false;
        options.shadow_rate = 0.0;
        let embedded = options.model == ModelRef::Builtin("target".to_owned());
        options.speculation.draft.get_or_insert_with(|| match embedded {
            true => DraftRef::Model(ModelRef::Builtin("draft".to_owned())),
            false => DraftRef::Ngram,
        });
        Ok(options)
    }

    fn shape(&self) -> BatchShape {
        BatchShape {
            batch_size: self.batch_size,
            input_len: self.input_len,
            output_len: self.output_len,
            num_iters_warmup: self.num_iters_warmup,
            num_iters: self.num_iters,
            seed: self.engine.seed,
        }
    }

    /// Opens the session, and makes its setups and its batch, after checking that they are possible.
    fn prepare(&self, options: &EngineOptions) -> anyhow::Result<Comparison> {
        let mut session = interrupt::preparing(|| Session::open(options))?;
        self.engine.tell_of_the_device(session.info());
        let info = session.info();
        let longest = info.max_model_len;
        if self.input_len.saturating_add(self.output_len) > longest {
            let what = "--input-len and --output-len are more together than a sequence can have";
            return Err(usage(
                anyhow!("{} + {} tokens, the greatest length is {longest}", self.input_len, self.output_len)
                    .context(what),
            ));
        }
        let bytes = Reference::bytes(self.batch_size, self.output_len, info.vocab_size, info.hidden_size);
        if let Some(limit) =
            MemoryLimit::of_this_process().filter(|limit| bytes > u128::from(limit.bytes) / 2)
        {
            return Err(usage_hint(
                anyhow!(
                    "the states of {} x {} tokens to compare with take {bytes} bytes, more than half of the memory there is: {limit}",
                    self.batch_size,
                    self.output_len
                ),
                "compare with a smaller --batch-size or --output-len",
            ));
        }
        let (batch_size, input_len) = (self.batch_size as usize, self.input_len as usize);
        let prompts = held_out::prompts(&session, batch_size, input_len, self.engine.seed)?;
        let batch = Batch::new(prompts, self.output_len, self.engine.seed);
        session.check(&batch.request(0, "0".to_owned()))?;
        session.count_noncausal(true);
        let setups = RUNS
            .iter()
            .map(|run| session.prepare(&run.options(&options.speculation), run.eager))
            .collect::<Result<_, _>>()?;
        let runs = vec![Measured::new(batch_size); RUNS.len()];
        Ok(Comparison { session, batch, setups, runs, bar: self.progress() })
    }

    fn header(&self, comparison: &Comparison, options: &EngineOptions) -> String {
        let info = comparison.session.info();
        let speculation = &options.speculation;
        let draft = speculation.draft.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let graphs = info.capture.as_ref().map_or_else(
            || "none".to_owned(),
            |capture| {
                let seconds = capture.elapsed.as_secs_f64();
                format!(
                    "{} captured, for up to {}, in {:.1} ms, {:.1} MB",
                    capture.graphs,
                    plural(info.graph_sizes.last().map_or(0, |&rows| rows as usize), "token row"),
                    seconds * 1e3,
                    capture.bytes as f64 / 1e6
                )
            },
        );
        let most = match speculation.length {
            DraftLength::Auto => format!("{} (auto)", speculation.length.most()),
            DraftLength::Fixed(k) => k.to_string(),
        };
        let mut text = header(info, self.shape());
        text.push_str(&format!("drafts   of {draft}, at most {most} a row\ngraphs   {graphs}\n"));
        if self.engine.shadow_rate > 0.0 {
            let rate = self.engine.shadow_rate;
            text.push_str(&format!(
                "shadow   {rate} of the replayed steps run twice; the times have that in them\n"
            ));
        }
        let needed = (u64::from(self.input_len) + u64::from(self.output_len))
            .div_ceil(u64::from(info.block_size))
            * u64::from(self.batch_size);
        if needed > u64::from(info.num_blocks) {
            text.push_str(&format!(
                "note     the batch needs {needed} KV blocks at its end, and the pool has {}: requests wait or are preempted, and \
                 the times have that in them\n",
                info.num_blocks
            ));
        }
        if self.engine.inject_fault.is_some() {
            text.push_str("fault    verify steps are replayed on graphs captured for single tokens\n");
        }
        text
    }

    fn progress(&self) -> ProgressBar {
        let iterations = u64::from(self.num_iters_warmup) + u64::from(self.num_iters) + 1;
        // The bar is drawn only on a terminal.
        let bar = ProgressBar::new(iterations * RUNS.len() as u64 + 1);
        if let Ok(style) = ProgressStyle::with_template("{msg:8} {wide_bar} {percent:>3} % {eta:>4}") {
            bar.set_style(style);
        }
        bar
    }

    fn write_dump(
        &self,
        file: &OutputFile,
        found: Vec<FirstVerify>,
        options: &EngineOptions,
    ) -> anyhow::Result<()> {
        let runs: Vec<Value> = RUNS
            .iter()
            .zip(found)
            .filter_map(|(run, first)| {
                let mut entry = json!({
                    "proposer": run.proposer(&options.speculation),
                    "scorer": run.scorer(&options.speculation),
                    "mode": run.mode(),
                });
                let Some(Value::Object(found)) = first.found else {
                    if run.way != Way::Plain {
                        let name = run.name(&options.speculation);
                        // It does no harm if the note is lost because standard error is closed.
                        let _ = writeln!(
                            std::io::stderr(),
                            "note: {name}, {}: no step had drafts, so there is no metadata of one",
                            run.mode()
                        );
                    }
                    return None;
                };
                entry.as_object_mut()?.extend(found);
                Some(entry)
            })
            .collect();
        file.write(&format!("{:#}\n", json!({ "runs": runs })))
    }
}

impl Comparison {
    fn pass(&mut self, run: usize) -> anyhow::Result<Option<Pass>> {
        self.batch.run(&mut self.session, self.setups[run], &mut Unobserved, &self.bar)
    }

    /// Measures everything, or as much as there was before Ctrl-C. Returns the first verify steps if every
    /// run was compared.
    fn measure(&mut self, flags: &Compare) -> anyhow::Result<Option<Vec<FirstVerify>>> {
        self.bar.set_message("parity");
        let Some(reference) = self.reference()? else { return Ok(None) };
        self.batch.recorded = reference.recorded();
        // An alarm is reported with the results. It fails the comparison, not the step.
        self.session.set_shadowing(flags.engine.shadow_rate, false);
        let Some(dumped) = self.compare(&reference)? else { return Ok(None) };
        let warmup = flags.num_iters_warmup as usize;
        for i in 0..warmup.saturating_add(flags.num_iters as usize) {
            self.bar.set_message(if i < warmup { "warm-up" } else { "timed" });
            let mut passes: Vec<Option<Pass>> = vec![None; RUNS.len()];
            // No run is always first.
            for run in (0..RUNS.len()).map(|r| (r + i) % RUNS.len()) {
                let Some(pass) = self.pass(run)? else { return Ok(Some(dumped)) };
                passes[run] = Some(pass);
            }
            for (measured, pass) in self.runs.iter_mut().zip(passes.iter().flatten()) {
                measured.parity.timed(&reference, &pass.tokens);
                if i >= warmup {
                    measured.add(pass);
                }
            }
        }
        Ok(Some(dumped))
    }

    /// Runs the batch that the others are compared with.
    fn reference(&mut self) -> anyhow::Result<Option<Reference>> {
        let mut reference = Reference::new(self.batch.prompts.len());
        self.session.keep_states(true);
        let setup = self.setups[Run::REFERENCE];
        let pass = self.batch.run(&mut self.session, setup, &mut reference, &self.bar)?;
        self.session.keep_states(false);
        Ok(pass.map(|_| reference))
    }

    /// Runs one untimed batch of every run, the plain eager one too, and compares it position by position.
    fn compare(&mut self, reference: &Reference) -> anyhow::Result<Option<Vec<FirstVerify>>> {
        let mut found = vec![FirstVerify::default(); RUNS.len()];
        self.session.keep_states(true);
        // The order is backwards, so that the runs that can go wrong come first and a canary is noticed
        // early.
        for run in (0..RUNS.len()).rev() {
            let mut parity = Parity::new(self.batch.prompts.len());
            let mut observer = Both { first: parity.observer(reference), verify: &mut found[run] };
            let pass = self.batch.run(&mut self.session, self.setups[run], &mut observer, &self.bar)?;
            if pass.is_none() {
                return Ok(None);
            }
            self.runs[run].parity = parity;
        }
        self.session.keep_states(false);
        Ok(Some(found))
    }
}
