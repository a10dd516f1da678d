//! One batch through the session, in one of the ways that are compared.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use pagedraft::session::{Emitted, Request, Session, SetupId};
use pagedraft_spec_decode::StageTimes;
use pagedraft_spec_decode::metrics::SpeculationMetrics;

use crate::cli::interrupt;
use crate::cli::step_figures::StepCounts;

/// The requests of every run.
pub struct Batch {
    pub prompts: Vec<Vec<u32>>,
    pub output_len: u32,
    pub seed: u64,
    /// What the reference generated, for synthetic drafts; empty until it has run.
    pub recorded: Vec<Arc<[u32]>>,
    /// Requests submitted so far: a name is used once in a session, as traces want it.
    submitted: usize,
}

/// What a batch came to.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// From submission to the last token, in seconds.
    pub latency: f64,
    /// The same, its steps alone.
    pub steps_seconds: f64,
    /// How many those were, and their time by stage, in microseconds.
    pub steps: u64,
    pub stages: StageTimes,
    /// What each request generated.
    pub tokens: Vec<Vec<u32>>,
    pub metrics: SpeculationMetrics,
    /// Times a request was preempted.
    pub preemptions: u64,
    pub target: StepCounts,
    pub draft: StepCounts,
}

/// Looks at a step that was done.
pub trait Observe {
    /// `row` is the sequence's index in the batch.
    ///
    /// # Errors
    ///
    /// What the observer finds wrong with the engine itself.
    fn emitted(&mut self, session: &mut Session, row: usize, news: &Emitted) -> anyhow::Result<()>;

    /// Behind every step, its news told.
    fn step(&mut self, session: &Session) -> anyhow::Result<()> {
        let _ = session;
        Ok(())
    }
}

/// Looks at nothing, for timed batches.
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

    /// Runs the batch in a setup, from an empty prefix cache; `None` when Ctrl-C ended it.
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
        // A batch that Ctrl-C cut short while it was made is none.
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
