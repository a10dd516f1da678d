//! `pagedraft bench prune`: dense and pruned prefills side by side, their speed and their quality.

mod answers;
mod config;
mod matrix;
mod quality;
mod report;
mod timing;

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use pagedraft::exit::usage;
use pagedraft::prune::PruneScorer;
use pagedraft::session::{EngineOptions, PruneOptions, RequestPrune, Session};
use pagedraft_workloads::tasks::RULER_TASKS;

use self::answers::{Answers, Files};
use self::config::Config;
use self::quality::Quality;
use self::report::Report;
use self::timing::time;
use super::engine_flags::EngineFlags;
use super::output_file::OutputFile;
use super::{Ended, held_out, interrupt, stdout};

/// Questions of each task by which scorers are compared, at most.
const MOST_ASKED: usize = 16;

#[derive(Clone, Debug, Args)]
pub struct PruneBench {
    /// Prompt lengths
    #[arg(long, value_name = "TOKENS,..", value_delimiter = ',', default_value = "1024", value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Ways to prune: keep09, keep08, keep07, sdtp, or spec files
    #[arg(long, value_name = "NAME|FILE,..", value_delimiter = ',', default_value = "keep09,keep07")]
    configs: Vec<String>,
    /// Tokens that each request generates
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..))]
    output_len: u32,
    /// Rounds before those that are timed
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_iters_warmup: u32,
    /// Timed rounds; in each of them dense and pruned requests run in turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    num_iters: u32,
    /// Texts and samples of each task by which quality is measured, of a model that has a tokenizer (0: none)
    #[arg(long, value_name = "N", default_value_t = 8)]
    quality_samples: u32,
    /// RULER tasks by which quality is measured
    #[arg(long, value_name = "TASK,..", value_delimiter = ',', default_value = "niah_single_1,vt,niah_multikey_1", value_parser = task)]
    tasks: Vec<String>,
    /// Files of RULER's samples (JSON lines with `input` and `outputs`) by which quality is measured too, each a task of its own. Prompts
    /// have the length that they have there
    #[arg(long, value_name = "FILE,..", value_delimiter = ',')]
    ruler: Vec<PathBuf>,
    /// Files of LongBench v1 (JSON lines) by whose questions quality is measured too: how likely the answer of the file is, and, where
    /// answers can be judged, how many are right. Prompts longer than --lengths lose their middle
    #[arg(long, value_name = "FILE,..", value_delimiter = ',')]
    longbench: Vec<PathBuf>,
    /// Scorers to compare at equal kept tokens, beside the oracle, which is told the dense model's answer
    #[arg(long, value_name = "SCORER,..", value_delimiter = ',')]
    scorers: Vec<PruneScorer>,
    /// Write the figures to this file; `report --table2 FILE` makes a table of them
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

fn task(name: &str) -> Result<String, String> {
    match RULER_TASKS.contains(&name) {
        true => Ok(name.to_owned()),
        false => Err(format!("RULER has no such task; it has {}", RULER_TASKS.join(", "))),
    }
}

/// The engines of the benchmark. Each has a model of its own, because only pruned prompts need it to be cut.
struct Engines {
    dense: Session,
    /// In the order of the configurations.
    pruned: Vec<Session>,
}

impl PruneBench {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let options = self.options()?;
        let configs = config::all(&self.configs)?;
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        self.engine.tell_what_is_idle();
        interrupt::listen()?;
        let mut engines = interrupt::preparing(|| self.open(&options, &configs))?;
        self.engine.tell_of_the_device(engines.dense.info());
        if !self.scorers.is_empty() {
            let num_layers = engines.dense.num_layers() as u16;
            for (config, session) in configs.iter().zip(&engines.pruned) {
                matrix::check(session, config, &self.scorers, num_layers).map_err(usage)?;
            }
        }
        let longest = self.lengths.iter().max().copied().unwrap_or(1);
        let most = engines.dense.info().max_model_len;
        if longest.saturating_add(self.output_len) > most {
            return Err(usage(anyhow!(
                "--lengths {longest} and --output-len {} are more together than the {most} tokens that a sequence can have",
                self.output_len
            )));
        }
        let mut report = Report::new(self.engine.seed, engines.dense.info());
        stdout::print(&report.header())?;
        for &length in &self.lengths {
            if self.measure(length, &configs, &mut engines, &mut report)?.is_none() {
                break;
            }
        }
        engines.dense.close(&report.json())?;
        stdout::print(&report.text()?)?;
        if let (Some(output), false) = (&output, report.is_empty()) {
            output.write(&format!("{:#}\n", report.json()))?;
        }
        Ok(if interrupt::pressed() { Ended::Interrupted } else { Ended::Done })
    }

    /// The options of the engine without pruning. It has KV memory for one request at a time, unless the flags say otherwise.
    fn options(&self) -> anyhow::Result<EngineOptions> {
        let mut options = self.engine.options(false)?;
        if options.prune != PruneOptions::default() {
            return Err(usage(anyhow!(
                "--prune-spec and --prune-layers: name the ways to prune with --configs"
            )));
        }
        if options.trace.is_some() {
            return Err(usage(anyhow!(
                "--trace-out: several engines run here; trace a run of generate or replay with --prune-spec"
            )));
        }
        let longest = self.lengths.iter().max().copied().unwrap_or(1).saturating_add(self.output_len);
        if options.num_blocks.is_none() && options.kv_cache_memory.is_none() {
            // Rows of prompts longer than a step wait in the same memory.
            options.num_blocks = Some(longest.div_ceil(options.block_size).saturating_mul(2) + 8);
        }
        options.max_model_len = options.max_model_len.or(Some(longest + self.output_len));
        Ok(options)
    }

    fn open(&self, options: &EngineOptions, configs: &[Config]) -> anyhow::Result<Engines> {
        let pruned = configs.iter().map(|config| {
            let prune = PruneOptions { all: Some(config.choice.clone()), ..PruneOptions::default() };
            let session = Session::open(&EngineOptions { prune, ..options.clone() });
            session.with_context(|| format!("the engine of {} does not open", config.name))
        });
        Ok(Engines { pruned: pruned.collect::<anyhow::Result<_>>()?, dense: Session::open(options)? })
    }

    /// Everything about prompts of one length; `None` if Ctrl-C ended it.
    fn measure(
        &self,
        length: u32,
        configs: &[Config],
        engines: &mut Engines,
        report: &mut Report,
    ) -> anyhow::Result<Option<()>> {
        let rounds = self.num_iters_warmup.saturating_add(self.num_iters);
        let prompts = held_out::prompts(&engines.dense, rounds as usize, length as usize, self.engine.seed)?;
        for (round, prompt) in (0..rounds).zip(&prompts) {
            let timed = round >= self.num_iters_warmup;
            // Whoever runs first in one round runs last in the next.
            let mut order: Vec<Option<usize>> =
                [None].into_iter().chain((0..configs.len()).map(Some)).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            let mut runs = Vec::new();
            for way in order {
                let (session, prune) = match way {
                    None => (&mut engines.dense, RequestPrune::Never),
                    Some(at) => (&mut engines.pruned[at], RequestPrune::AsEngine),
                };
                let Some(run) = time(session, prompt, self.output_len, prune)? else { return Ok(None) };
                runs.push((way, run));
            }
            if timed {
                report.add_round(length, configs, runs, engines)?;
            }
        }
        let (samples, seed) = ((length, self.quality_samples), self.engine.seed);
        let answers = match self.quality_samples {
            0 => None,
            _ => {
                let files = Files { ruler: &self.ruler, longbench: &self.longbench };
                Answers::new(&engines.dense, (&self.tasks, &files), samples, seed)?
            }
        };
        let mut asked = Vec::new();
        if let Some(answers) = &answers {
            let Some(dense) = judge(length, configs, engines, answers, report)? else { return Ok(None) };
            asked = answers.solved(&dense, MOST_ASKED);
        }
        if !self.scorers.is_empty() {
            // What an answer attends to tells nothing where the answer is wrong.
            if asked.is_empty() {
                asked.extend(prompts.iter().take(4).map(|prompt| (&prompt[..], self.output_len)));
            }
            for (config, session) in configs.iter().zip(&mut engines.pruned) {
                let mut scorers = self.scorers.clone();
                scorers.retain(|&scorer| scorer != PruneScorer::Oracle);
                let way = (config, &scorers[..]);
                let Some(rows) = matrix::rows(&mut engines.dense, session, way, &asked)? else {
                    return Ok(None);
                };
                report.add_matrix(length, &config.name, rows);
            }
        }
        Ok(Some(()))
    }
}

/// Measures the quality of what pruned requests generate beside that of dense ones, which it returns; `None` if Ctrl-C ended it.
fn judge(
    length: u32,
    configs: &[Config],
    engines: &mut Engines,
    answers: &Answers,
    report: &mut Report,
) -> anyhow::Result<Option<Quality>> {
    let Some(dense) = answers.judge(&mut engines.dense, &RequestPrune::Never)? else { return Ok(None) };
    for (config, session) in configs.iter().zip(&mut engines.pruned) {
        let Some(pruned) = answers.judge(session, &RequestPrune::AsEngine)? else { return Ok(None) };
        report.add_quality(length, &config.name, &dense, pruned);
    }
    Ok(Some(dense))
}
