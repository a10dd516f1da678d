//! Runs plans on a model: metadata, forward pass, sampling.

use std::collections::HashMap;
use std::time::Instant;

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_block_manager::GroupId;
use pagedraft_model::{Device, ModelError, Runner};
use pagedraft_scheduler::{Executor, Kind, KvView, PlanRow, RequestKey, RowOutcome, StepOutcome, StepPlan};

use crate::error::ExecuteError;
use crate::record::{PromptLogprobs, StepRecord};
use crate::sampling::{Sampler, SamplingParams, logprobs};

/// The KV group of a dense model.
pub const TARGET_GROUP: GroupId = GroupId(0);

/// What is kept for a request from its registration to its end.
struct Registered {
    sampling: SamplingParams,
    prompt_len: u32,
}

/// The engine's executor: one model, and the sampling parameters of the requests that run on it.
///
/// Token rows are run in the order of the metadata: plan rows with more than one token first, then the single
/// tokens, each in the plan's order. The outcome is in the plan's order.
pub struct ModelExecutor<D: Device> {
    runner: Runner<D>,
    builder: MetadataBuilder,
    keep_logits: bool,
    sampler: Sampler,
    requests: HashMap<RequestKey, Registered>,
    /// Plan rows in the order they run, and the first token row of each.
    order: Vec<u32>,
    starts: Vec<u32>,
    /// Plan rows that sample, in the plan's order, and the token row each samples from.
    sampled: Vec<u32>,
    selection: Vec<u32>,
}

impl<D: Device> ModelExecutor<D> {
    /// An executor over a loaded model.
    ///
    /// # Errors
    ///
    /// A block size that is not 16, 32 or 64.
    pub fn new(runner: Runner<D>, block_size: u32) -> Result<Self, ExecuteError> {
        Ok(Self {
            runner,
            builder: MetadataBuilder::new(block_size)?,
            keep_logits: false,
            sampler: Sampler::default(),
            requests: HashMap::new(),
            order: Vec::new(),
            starts: Vec::new(),
            sampled: Vec::new(),
            selection: Vec::new(),
        })
    }

    /// Whether the record keeps the logits that each token is chosen from (a copy a token).
    pub fn keep_logits(&mut self, keep: bool) {
        self.keep_logits = keep;
    }

    /// Says how `request` is sampled; to be called before a plan has it. Forgotten when a plan lists it as finished.
    pub fn register(&mut self, request: RequestKey, sampling: SamplingParams, prompt_len: u32) {
        self.requests.insert(request, Registered { sampling, prompt_len });
    }

    /// The model, for what a step leaves behind: hidden states, the last logits.
    pub fn runner(&mut self) -> &mut Runner<D> {
        &mut self.runner
    }

    fn gather(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        record: &mut StepRecord,
    ) -> Result<(), ExecuteError> {
        self.order.clear();
        let several = |row: &PlanRow| row.tokens.len() > 1;
        let numbered = || (0u32..).zip(&plan.rows);
        self.order.extend(numbered().filter(|(_, row)| several(row)).map(|(i, _)| i));
        self.order.extend(numbered().filter(|(_, row)| !several(row)).map(|(i, _)| i));
        self.starts.clear();
        self.starts.resize(plan.rows.len(), 0);

        let inputs = &mut record.inputs;
        inputs.tokens.clear();
        inputs.positions.clear();
        record.plan_rows.clear();
        self.builder.begin();
        for &i in &self.order {
            let row = &plan.rows[i as usize];
            if matches!(row.kind, Kind::Denoise { .. }) || row.drafts_max > 0 {
                return Err(ExecuteError::Unsupported {
                    request: row.request,
                    kind: format!("{:?}", row.kind),
                });
            }
            self.starts[i as usize] = inputs.tokens.len() as u32;
            let tokens = kv.tokens(row.request);
            let Some(known) = tokens.get(row.tokens.start as usize..row.tokens.end as usize) else {
                return Err(ExecuteError::Plan {
                    request: row.request,
                    what: "it has fewer tokens than the row asks for",
                });
            };
            inputs.tokens.extend_from_slice(known);
            inputs.positions.extend(row.tokens.clone());
            let table = kv.block_table(row.request, TARGET_GROUP);
            self.builder.push_row(row.tokens.start, row.tokens.len() as u32, table, MaskKind::Causal)?;
            record.plan_rows.push(i);
        }
        inputs.metadata = self.builder.take(std::mem::take(&mut inputs.metadata));
        Ok(())
    }

    /// Samples every row that ends at its sequence's end; rows and tokens of the outcome are in the plan's order.
    fn sample(
        &mut self,
        plan: &StepPlan,
        outcome: &mut StepOutcome<StepRecord>,
    ) -> Result<(f64, f64), ExecuteError> {
        self.sampled.clear();
        self.selection.clear();
        for (i, row) in (0u32..).zip(&plan.rows) {
            if row.samples {
                self.sampled.push(i);
                self.selection.push(self.starts[i as usize] + row.tokens.len() as u32 - 1);
            }
        }
        let (mut head_us, mut sample_us) = (0.0, 0.0);
        let step = self.runner.limits().logit_rows;
        for (rows, selection) in self.sampled.chunks(step).zip(self.selection.chunks(step)) {
            let start = Instant::now();
            let logits = self.runner.logits(selection)?;
            let done = Instant::now();
            head_us += (done - start).as_secs_f64() * 1e6;
            for (&i, logits) in rows.iter().zip((0..).map(|r| logits.row(r))) {
                let row = &plan.rows[i as usize];
                let bad = |source| ExecuteError::Sampling { request: row.request, source };
                let registered = self
                    .requests
                    .get(&row.request)
                    .ok_or(ExecuteError::Unregistered { request: row.request })?;
                let token = self.sampler.choose(logits, &registered.sampling, row.tokens.end).map_err(bad)?;
                outcome.rows[i as usize].tokens =
                    outcome.tokens.len() as u32..outcome.tokens.len() as u32 + 1;
                outcome.tokens.push(token);
                if let Some(n) = registered.sampling.logprobs {
                    let row_logprobs = logprobs(logits, n, token).map_err(bad)?;
                    outcome.record.logprobs.push((row.request, row_logprobs));
                }
                if self.keep_logits {
                    outcome.record.logits.push((row.request, logits.to_vec()));
                }
            }
            sample_us += done.elapsed().as_secs_f64() * 1e6;
        }
        Ok((head_us, sample_us))
    }

    /// Log probabilities of the prompt positions that the step computed, for requests that asked.
    fn prompt_logprobs(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        record: &mut StepRecord,
    ) -> Result<(), ExecuteError> {
        let step = self.runner.limits().logit_rows as u32;
        for (i, row) in plan.rows.iter().enumerate() {
            let Some(registered) = self.requests.get(&row.request) else { continue };
            let Some(n) = registered.sampling.prompt_logprobs else { continue };
            let bad = |source| ExecuteError::Sampling { request: row.request, source };
            // The logits at position p are the distribution of the token at p + 1.
            let prompt = &kv.tokens(row.request)[..registered.prompt_len as usize];
            let end = row.tokens.end.min(registered.prompt_len.saturating_sub(1));
            let mut from = row.tokens.start;
            while from < end {
                let to = end.min(from + step);
                self.selection.clear();
                self.selection.extend((from..to).map(|p| self.starts[i] + p - row.tokens.start));
                let logits = self.runner.logits(&self.selection)?;
                for (p, logits) in (from..to).zip((0..).map(|r| logits.row(r))) {
                    let logprobs = logprobs(logits, n, prompt[p as usize + 1]).map_err(bad)?;
                    record.prompt_logprobs.push(PromptLogprobs {
                        request: row.request,
                        position: p + 1,
                        logprobs,
                    });
                }
                from = to;
            }
        }
        Ok(())
    }
}

impl<D: Device> Executor for ModelExecutor<D> {
    type Record = StepRecord;
    type Error = ExecuteError;

    fn execute(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<StepRecord>,
    ) -> Result<(), ExecuteError> {
        for request in &plan.finished {
            self.requests.remove(request);
        }
        outcome.id = plan.id;
        outcome.tokens.clear();
        outcome.rows.clear();
        outcome.rows.extend(plan.rows.iter().map(|row| RowOutcome {
            request: row.request,
            tokens: 0..0,
            num_drafts: 0,
            num_accepted: 0,
            stop: false,
        }));
        outcome.record.logprobs.clear();
        outcome.record.prompt_logprobs.clear();
        outcome.record.logits.clear();

        let start = Instant::now();
        self.gather(plan, kv, &mut outcome.record)?;
        let gathered = Instant::now();
        self.runner.copy_blocks(&plan.copies)?;
        if !plan.rows.is_empty() {
            self.runner.forward(&outcome.record.inputs)?;
        }
        let forwarded = Instant::now();
        let (head_us, sample_us) = self.sample(plan, outcome)?;
        let prompt_start = Instant::now();
        self.prompt_logprobs(plan, kv, &mut outcome.record)?;

        let us = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e6;
        let times = &mut outcome.record.time_us;
        times.metadata = us(start, gathered);
        times.propose = 0.0;
        times.execute = us(gathered, forwarded) + head_us;
        times.sample = sample_us + prompt_start.elapsed().as_secs_f64() * 1e6;
        Ok(())
    }
}

impl From<ModelError> for ExecuteError {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}
