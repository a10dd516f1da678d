//! Runs a batch through the session in one of the ways that are compared.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use pagedraft::session::{Emitted, Request, Session, SetupId};
use pagedraft_spec_decode::StageTimes;
use pagedraft_spec_decode::metrics::SpeculationMetrics;

use crate::cli::interrupt;
use crate::cli::step_figures::StepCounts;

/// The requests that every run has.
pub struct Batch {
    pub prompts: Vec<Vec<u32>>,
    pub output_len: u32,
    pub seed: u64,
    /// The output of the reference, which synthetic drafts need. It is empty until the reference has run.
    pub recorded: Vec<Arc<[u32]>>,
    /// The number of requests submitted so far. A name is used only once in a session, as traces require.
    submitted: usize,
}

/// The result of running a batch.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// The seconds from submission to the last token.
    pub latency: f64,
    /// The seconds of its steps alone.
    pub steps_seconds: f64,
    /// The number of these steps, and their time by stage in microseconds.
    pub steps: u64,
    pub stages: StageTimes,
    /// The tokens that each request generated.
    pub tokens: Vec<Vec<u32>>,
    pub metrics: SpeculationMetrics,
    /// How often a request was preempted.
    pub preemptions: u64,
    pub target: StepCounts,
    pub draft: StepCounts,
}

/// Observes the steps of a batch.
pub trait Observe {
    /// Is called with the news of a sequence, whose index in the batch is `row`.
    ///
    /// # Errors
    ///
    /// Whatever the observer finds wrong with the engine itself.
    fn emitted(&mut self, session: &mut Session, row: usize, news: &Emitted) -> anyhow::Result<()>;

    /// Is called after every step, when its news have been reported.
    fn step(&mut self, session: &Session) -> anyhow::Result<()> {
        let _ = session;
        Ok(())
    }
}

/// Observes nothing. It is used for timed batches.
pub struct Unobserved;

impl Observe for Unobserved {
    fn emitted(&mut self, _: &mut Session, _: usize, _: &Emitted) -> anyhow::Result<()> {
        Ok(())
    }
}

impl Batch {
    pub fn new(prompts: Vec<Vec<u32>>, output_len: u32, seed: u64) -> Self {
        Self { prompts, output_len, seed, recorded: Vec::new(), submitted: 0 }
    }

    /// The request of sequence `row`.
    pub fn request(&self, row: usize, name: String) -> Request {
        let mut request = Request::new(name, self.prompts[row].clone(), self.output_len);
        request.sampling.seed = self.seed;
        request.ignore_eos = true;
        request.recorded.extend(self.recorded.get(row).cloned());
        request
    }

    /// Runs the batch in a setup, with an empty prefix cache at first; `None` if Ctrl-C ended it.
    pub fn run(
        &mut self,
        session: &mut Session,
        setup: SetupId,
        observer: &mut dyn Observe,
        bar: &ProgressBar,
    ) -> anyhow::Result<Option<Pass>> {
        session.clear_prefix_cache();
        session.switch(setup)?;
        session.take_metrics();
        let start = Instant::now();
        let mut ids = Vec::with_capacity(self.prompts.len());
        // If Ctrl-C was pressed while the batch was made, it is incomplete and does not count.
        let mut cut = interrupt::pressed();
        for row in 0..self.prompts.len() {
            cut = interrupt::pressed();
            if cut {
                break;
            }
            let name = self.submitted + row;
            ids.extend(session.submit(self.request(row, name.to_string()))?);
        }
        self.submitted += ids.len();
        let mut pass = Pass::default();
        while session.has_unfinished() || cut {
            if interrupt::pressed() {
                interrupt::forget(session, &ids)?;
                return Ok(None);
            }
            let Some(step) = interrupt::step(session)? else { continue };
            pass.steps_seconds += step.elapsed.as_secs_f64();
            pass.steps += 1;
            pass.stages.add(&step.stages);
            for news in &step.emitted {
                let row = ids.iter().position(|&id| id == news.id).context("a step gave unasked-for news")?;
                observer.emitted(session, row, news)?;
            }
            observer.step(session)?;
        }
        pass.latency = start.elapsed().as_secs_f64();
        bar.inc(1);
        for &id in &ids {
            let output = session.take_output(id).context("a request of the batch gave no output")?;
            ensure!(
                output.token_ids.len() == self.output_len as usize,
                "request {} gave {} tokens instead of {}",
                output.request_id,
                output.token_ids.len(),
                self.output_len
            );
            pass.preemptions += u64::from(output.num_preemptions);
            pass.tokens.push(output.token_ids);
        }
        let (target, draft) = session.run_counts();
        pass.target = target.into();
        pass.draft = draft.map(StepCounts::from).unwrap_or_default();
        pass.metrics = session.take_metrics();
        Ok(Some(pass))
    }
}
