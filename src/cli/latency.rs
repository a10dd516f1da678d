//! `pagedraft bench latency`: runs batches and times them.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pagedraft::exit::usage;
use pagedraft::memory_need::{ensure_fits, requests};
use pagedraft::session::{EngineOptions, Request, RequestId, Session};

use super::deterministic_cost::{DeterministicCost, Way};
use super::latency_flags::Latency;
use super::latency_report::{Iteration, Report};
use super::output_file::OutputFile;
use super::{Ended, held_out, interrupt, recording, stdout};

impl Latency {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let options = self.engine.options(false)?;
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        self.engine.tell_what_is_idle();
        interrupt::listen()?;
        let plain = recording::plain(&options);
        // Making prompts and checking the options need the model, but no drafts. The recordings that
        // synthetic drafts need are made before the engine that uses them opens.
        self.ensure_batch_fits()?;
        let open = |options: &EngineOptions| interrupt::preparing(|| Session::open(options));
        let mut session = open(plain.as_ref().unwrap_or(&options))?;
        self.engine.tell_of_the_device(session.info());
        self.engine.refuse_for_canvases(session.info())?;
        let longest = session.info().max_model_len;
        if self.input_len.saturating_add(self.output_len) > longest {
            let what = "--input-len and --output-len are more together than a sequence can have";
            return Err(usage(
                anyhow!("{} + {} tokens, the greatest length is {longest}", self.input_len, self.output_len)
                    .context(what),
            ));
        }
        let prompts =
            held_out::prompts(&session, self.batch_size as usize, self.input_len as usize, self.engine.seed)?;
        let wanted = prompts.iter().take_while(|_| !interrupt::pressed());
        let mut requests: Vec<Request> = wanted.map(|prompt| self.request(prompt)).collect();
        if plain.is_some() {
            recording::record(&mut session, requests.iter_mut())?;
            drop(session);
            session = open(&options)?;
        }
        session.count_noncausal(true);
        let prepare = |session: &mut Session| DeterministicCost::prepare(session, &options);
        let mut cost = self.deterministic_cost.then(|| prepare(&mut session)).transpose()?;
        let mut report = Report::new(self, session.info());
        stdout::print(&report.header())?;
        let bar = self.progress();
        let mut batches = 0;
        'iterations: for i in 0..self.num_iters_warmup.saturating_add(self.num_iters) {
            let timed = i >= self.num_iters_warmup;
            bar.set_message(if timed { "timed" } else { "warm-up" });
            let both = DeterministicCost::order(i);
            let ways = if cost.is_some() { &both[..] } else { &[Way::Deterministic] };
            for &way in ways {
                if let Some(cost) = &cost {
                    cost.enter(&mut session, way)?;
                }
                let ran = self.iteration(batches, &mut session, &requests, &bar)?;
                let Some(iteration) = ran else { break 'iterations };
                batches += 1;
                if let Some(cost) = cost.as_mut().filter(|_| timed) {
                    cost.add(&mut session, way, iteration.latency);
                }
                if timed && way == Way::Deterministic {
                    report.add(iteration, &mut session);
                } else {
                    session.take_metrics();
                }
                bar.set_position(u64::from(batches) * u64::from(self.output_len));
            }
        }
        bar.finish_and_clear();
        report.set_cost(cost);
        let interrupted = report.len() < self.num_iters as usize;
        session.close(&report.json())?;
        stdout::print(&report.table())?;
        if let (Some(output), false) = (&output, report.is_empty()) {
            output.write(&format!("{:#}\n", report.json()))?;
        }
        if interrupted {
            // The system frees a huge batch at once. Dropping it piece by piece may take seconds.
            std::mem::forget((session, requests, prompts));
        }
        Ok(if interrupted { Ended::Interrupted } else { Ended::Done })
    }

    fn progress(&self) -> ProgressBar {
        let ways = if self.deterministic_cost { 2 } else { 1 };
        let iterations = u64::from(self.num_iters_warmup) + u64::from(self.num_iters);
        let steps = iterations * ways * u64::from(self.output_len);
        // The bar is drawn only on a terminal.
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{msg:8} {wide_bar} {percent:>3} % {eta:>4}") {
            bar.set_style(style);
        }
        bar
    }

    /// Runs one batch from submission to its last token; `None` if Ctrl-C ended it.
    fn iteration(
        &self,
        number: u32,
        session: &mut Session,
        requests: &[Request],
        bar: &ProgressBar,
    ) -> anyhow::Result<Option<Iteration>> {
        let start = Instant::now();
        let mut ids = Vec::with_capacity(requests.len());
        // If Ctrl-C was pressed while the batch was made, it is incomplete and does not count.
        let mut cut = interrupt::pressed();
        for (i, request) in requests.iter().enumerate() {
            cut = interrupt::pressed();
            if cut {
                break;
            }
            // A name is used only once in a run, as traces require.
            let name = number as usize * requests.len() + i;
            ids.extend(session.submit(Request { request_id: name.to_string(), ..request.clone() })?);
        }
        let mut iteration = Iteration::default();
        let canvases = session.info().mask_token_id.is_some();
        let mut streamed: HashMap<RequestId, f64> = HashMap::new();
        while session.has_unfinished() || cut {
            if interrupt::pressed() {
                interrupt::forget(session, &ids)?;
                return Ok(None);
            }
            let Some(step) = interrupt::step(session)? else { continue };
            let seconds = step.elapsed.as_secs_f64();
            if step.prefill_tokens > 0 {
                iteration.prefill_seconds += seconds;
            } else if step.decode_rows > 0 {
                iteration.decode_steps.push(seconds);
            }
            let now = start.elapsed().as_secs_f64();
            for emitted in step.emitted.iter().filter(|emitted| canvases && !emitted.tokens.is_empty()) {
                match streamed.insert(emitted.id, now) {
                    None => iteration.blocks.0.push(now),
                    Some(before) => iteration.blocks.1.push(now - before),
                }
            }
            bar.inc(1);
        }
        iteration.latency = start.elapsed().as_secs_f64();
        for id in ids {
            let output = session.take_output(id).context("a request of the batch gave no output")?;
            if output.token_ids.len() != self.output_len as usize {
                bail!(
                    "request {} gave {} tokens instead of {}",
                    output.request_id,
                    output.token_ids.len(),
                    self.output_len
                );
            }
        }
        Ok(Some(iteration))
    }

    /// Refuses a batch whose requests alone take more memory than there is, before any of them is made.
    fn ensure_batch_fits(&self) -> anyhow::Result<()> {
        let what = format!(
            "--batch-size {} with {} + {} tokens a request",
            self.batch_size, self.input_len, self.output_len
        );
        Ok(ensure_fits(&what, requests(self.batch_size, self.input_len, self.output_len))?)
    }

    fn request(&self, prompt: &[u32]) -> Request {
        let mut request = Request::new("", prompt.to_vec(), self.output_len);
        request.sampling.seed = self.engine.seed;
        request.ignore_eos = true;
        request
    }
}
