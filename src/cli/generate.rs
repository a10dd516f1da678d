//! `pagedraft generate` continues prompts.

use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use pagedraft::session::{Emitted, RequestId, RequestOutput, Session, SpeculationOptions};
use pagedraft_spec_decode::metrics::SpeculationMetrics;
use serde_json::json;

use super::engine_flags::EngineFlags;
use super::output_file::OutputFile;
use super::prompts::{Arrival, Prompt, PromptSource, SamplingFlags};
use super::step_figures::no_drafts;
use super::{Ended, interrupt, recording, stdout};

#[derive(Clone, Debug, Args)]
pub struct Generate {
    #[command(flatten)]
    source: PromptSource,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Write the results to this file: a JSON object, or one a line (`.jsonl`, or several of them)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    output_json: Option<PathBuf>,
    /// Add to each output which keys the indexers of a model with sparse attention chose for each token (the base64 of a .npy
    /// array); prompts are then computed in whole, without the prefix cache
    #[arg(long, help_heading = "Output")]
    return_indexer_topk: bool,
    /// Tokens of the canvas of a model that fills masks (default: --max-tokens)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Block diffusion")]
    gen_length: Option<u32>,
    #[command(flatten)]
    engine: EngineFlags,
}

/// The totals of all steps.
#[derive(Debug, Default)]
struct Totals {
    steps: u64,
    prompt_tokens: usize,
    new_tokens: usize,
    elapsed: Duration,
    /// The metrics of speculation, if there is a proposer.
    speculation: Option<SpeculationMetrics>,
}

impl Generate {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let mut options = self.engine.options(true)?;
        options.return_indexer_topk = self.return_indexer_topk;
        options.diffusion.required |= self.gen_length.is_some();
        let prompts = self.source.read(&self.sampling, self.engine.seed)?;
        options.prune.others = prompts.iter().filter_map(Prompt::prune).cloned().collect();
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        self.engine.tell_what_is_idle();
        interrupt::listen()?;
        let plain = recording::plain(&options);
        // The recordings that synthetic drafts need are made before the engine that uses them opens.
        let mut session = interrupt::preparing(|| Session::open(plain.as_ref().unwrap_or(&options)))?;
        self.engine.tell_of_the_device(session.info());
        self.engine.refuse_for_canvases(session.info())?;
        let mut arrivals =
            prompts.into_iter().map(|p| p.arrival(&session)).collect::<anyhow::Result<Vec<_>>>()?;
        for arrival in &mut arrivals {
            arrival.request.return_indexer_topk = self.return_indexer_topk;
            arrival.request.max_tokens = self.gen_length.unwrap_or(arrival.request.max_tokens);
        }
        // Requests are checked before anything runs, so that a bad line far down does not cost the work on
        // those before it.
        arrivals.iter().try_for_each(|arrival| session.check(&arrival.request))?;
        if plain.is_some() {
            recording::record(&mut session, arrivals.iter_mut().map(|arrival| &mut arrival.request))?;
            drop(session);
            session = interrupt::preparing(|| Session::open(&options))?;
        }
        let streams = !self.source.is_a_list() && arrivals[0].request.n == 1;
        let to_stdout = matches!(output, Some(OutputFile::Stdout));
        let only = output.is_none();
        let mut screen =
            if streams && !to_stdout { Screen::Text { last: None, only } } else { Screen::Quiet };
        let (ids, mut totals) = serve(&mut session, arrivals, &mut screen)?;
        screen.end()?;
        let outputs = ids
            .into_iter()
            .map(|id| session.take_output(id).context("a request gave no output"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        totals.speculation = options.speculation.draft.is_some().then(|| session.take_metrics());
        session.close(&totals.json(outputs.len()))?;
        self.engine.tensors.tell_what_is_left_out(&session);
        if outputs.is_empty() {
            // Ctrl-C came before anything was submitted, so an output file that exists is kept.
            return Ok(Ended::Interrupted);
        }
        match &output {
            Some(output) => output.write(&self.text(&outputs)?)?,
            None if streams => {}
            None if self.source.is_a_list() => stdout::print(&lines(&outputs)?)?,
            None => stdout::print(&samples(&outputs))?,
        }
        totals.tell(&options.speculation);
        self.engine.tell_of_the_tiers(&mut session);
        self.engine.diffusion.diagnose(&outputs)?;
        for why in outputs.iter().filter_map(|output| output.error.as_deref()) {
            // Of a list, the other prompts were served. If there is only one prompt, its failure is the
            // only result.
            ensure!(self.source.is_a_list(), "{why}");
            let _ = writeln!(std::io::stderr(), "failed: {why}");
        }
        Ok(if interrupt::pressed() { Ended::Interrupted } else { Ended::Done })
    }

    /// The results as one JSON object, or as one per line.
    fn text(&self, outputs: &[RequestOutput]) -> anyhow::Result<String> {
        let by_lines = |path: &Path| path.extension().is_some_and(|e| e == "jsonl");
        match outputs {
            [one] if !self.source.is_a_list() && !self.output_json.as_deref().is_some_and(by_lines) => {
                Ok(serde_json::to_string(one)? + "\n")
            }
            _ => lines(outputs),
        }
    }
}

/// Runs the session until every arrival is served. Returns the ids of their samples, in the order of the
/// arrivals.
fn serve(
    session: &mut Session,
    arrivals: Vec<Arrival>,
    screen: &mut Screen,
) -> anyhow::Result<(Vec<RequestId>, Totals)> {
    let start = Instant::now();
    let mut totals = Totals::default();
    let mut ids: Vec<Vec<RequestId>> = vec![Vec::new(); arrivals.len()];
    let mut coming: Vec<(usize, Arrival)> = arrivals.into_iter().enumerate().collect();
    coming.sort_by_key(|(_, arrival)| arrival.step);
    let mut coming = VecDeque::from(coming);
    // The number of the next step. Steps in which nothing ran count too.
    let mut next = 0;
    while !interrupt::pressed() {
        if !session.has_unfinished() {
            let Some((_, first)) = coming.front() else { break };
            next = first.step.max(next);
            session.skip_to(next);
        }
        while coming.front().is_some_and(|(_, arrival)| arrival.step <= next) {
            let Some((i, arrival)) = coming.pop_front() else { break };
            totals.prompt_tokens += arrival.request.prompt.len();
            ids[i] = session.submit(arrival.request)?;
            if interrupt::pressed() {
                break;
            }
        }
        let Some(step) = interrupt::step(session)? else { break };
        next += 1;
        totals.steps += 1;
        for emitted in &step.emitted {
            totals.new_tokens += emitted.tokens.len();
            screen.show(emitted)?;
        }
    }
    // This is after Ctrl-C, so requests that have not arrived yet are dropped.
    // The last one goes first, because the scheduler searches its queue of waiting requests from the end.
    for &id in ids.iter().flatten().rev() {
        session.abort(id)?;
    }
    totals.elapsed = start.elapsed();
    Ok((ids.into_iter().flatten().collect(), totals))
}

/// Where text is shown as it is generated.
enum Screen {
    Quiet,
    /// On standard output. `last` is the text that it ends with.
    Text {
        last: Option<char>,
        /// Whether the run has no other result. It then ends when nobody reads standard output any more.
        only: bool,
    },
}

impl Screen {
    fn show(&mut self, emitted: &Emitted) -> anyhow::Result<()> {
        if let Self::Text { last, only } = self
            && !emitted.text.is_empty()
        {
            match stdout::print(&emitted.text) {
                Err(e) if stdout::is_closed_pipe(&e) && !*only => *self = Self::Quiet,
                printed => {
                    *last = emitted.text.chars().next_back();
                    return printed;
                }
            }
        }
        Ok(())
    }

    fn end(&self) -> anyhow::Result<()> {
        match self {
            Self::Text { last: Some(last), .. } if *last != '\n' => stdout::print("\n"),
            _ => Ok(()),
        }
    }
}

impl Totals {
    fn json(&self, requests: usize) -> serde_json::Value {
        json!({
            "command": "generate",
            "requests": requests,
            "steps": self.steps,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.new_tokens,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "speculation": self.speculation.as_ref().and_then(summary),
        })
    }

    fn tell(&self, options: &SpeculationOptions) {
        let seconds = self.elapsed.as_secs_f64();
        let rate = self.new_tokens as f64 / seconds.max(1e-9);
        // It does no harm if the note is lost because standard error is closed.
        let _ = writeln!(
            std::io::stderr(),
            "{} prompt tokens, {} generated in {seconds:.3} s ({rate:.1} tokens/s){}",
            self.prompt_tokens,
            self.new_tokens,
            self.speculation.as_ref().map_or_else(String::new, |metrics| accepted(metrics, options)),
        );
    }
}

/// The metrics for programs. Drafts behind a rejected one are not judged here, so the rate that counts them
/// is missing.
fn summary(metrics: &SpeculationMetrics) -> Option<serde_json::Value> {
    let mut summary = serde_json::to_value(metrics.summary()).ok()?;
    summary.as_object_mut()?.remove("draft_acceptance_rate_noncausal");
    Some(summary)
}

/// How many drafts were accepted, as the end of a line.
fn accepted(metrics: &SpeculationMetrics, options: &SpeculationOptions) -> String {
    match (metrics.draft_acceptance_rate(), metrics.mean_acceptance_length()) {
        (Some(rate), Some(length)) => format!(
            "; {} of {} drafts accepted ({:.1} %), {length:.2} tokens a verify row",
            metrics.num_accepted_tokens,
            metrics.num_draft_tokens,
            rate * 100.0
        ),
        _ => format!("; {}", no_drafts(options.length, options.draft.as_ref())),
    }
}

fn lines(outputs: &[RequestOutput]) -> anyhow::Result<String> {
    let mut text = String::new();
    for output in outputs {
        text.push_str(&serde_json::to_string(output)?);
        text.push('\n');
    }
    Ok(text)
}

/// The samples of one prompt, for people.
fn samples(outputs: &[RequestOutput]) -> String {
    let mut by_sample: Vec<String> = Vec::new();
    for output in outputs {
        by_sample.push(format!("--- sample {} ---\n{}\n", output.sample, output.text.trim_end_matches('\n')));
    }
    by_sample.concat()
}
