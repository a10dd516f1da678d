//! What a step costs: measured by `pagedraft bench calibrate`, or given by hand.

use std::collections::BTreeMap;

use pagedraft_scheduler::{CostCurve, StepCosts};
use serde::{Deserialize, Serialize};

/// What a step has to do, as far as its cost depends on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepShape {
    /// Requests in the step.
    pub plan_rows: u32,
    /// Rows of the attention call.
    pub metadata_rows: u32,
    /// Query tokens, drafts included.
    pub token_rows: u32,
    /// Rows that a graph adds to them.
    pub pad_rows: u32,
    /// Token rows whose logits are computed.
    pub logit_rows: u32,
    /// Tokens of KV read, each row of the attention call once: the sum of its contexts.
    pub context_reads: u64,
    /// Of those, by requests of one query token, without drafts.
    pub single_reads: u64,
    /// Pairs of a query token and a token before it: the sum over query tokens of their contexts.
    pub context_pairs: u64,
    /// Of those, in rows that compute prompts.
    pub prefill_pairs: u64,
    /// Requests whose prompts are computed.
    pub prefills: u32,
    /// Requests that the engine was given before it.
    pub begun: u32,
    /// Requests that end with it.
    pub ended: u32,
    /// Whether a graph is replayed.
    pub replayed: bool,
    /// Microseconds that the engine had had nothing to do before it; 0 right behind another step.
    pub idle_us: f64,
    /// Token rows that the step right before it had computed; 0 after idleness.
    pub rows_before: u32,
    /// Requests that are drafted for, pass by pass; empty without a proposer.
    pub draft_passes: Vec<u32>,
    /// Token rows of the first of these passes, lagging tokens included.
    pub draft_catch_up: u32,
    /// Tokens of the proposer's KV read, over all passes: the sum of the contexts of their rows.
    pub draft_reads: u64,
    /// Pairs of a query token of these passes and a token before it.
    pub draft_pairs: u64,
}

impl StepShape {
    /// Pairs of a query token and a token before it, of `queries` tokens behind `start`. `reads` says how many tokens one behind so many
    /// reads, averaged over the layers: all of them, unless some layers have windows.
    #[must_use]
    pub fn pairs(start: u32, queries: u32, reads: impl Fn(u32) -> u32) -> u64 {
        if reads(u32::MAX) == u32::MAX {
            let (start, n) = (u64::from(start), u64::from(queries));
            return n * start + n * n.saturating_sub(1) / 2;
        }
        (start..start.saturating_add(queries)).map(|len| u64::from(reads(len))).sum()
    }

    /// Token rows that the forward pass computes, those that a graph adds included.
    #[must_use]
    pub fn rows_run(&self) -> u32 {
        self.token_rows.saturating_add(self.pad_rows)
    }

    /// Whether the engine had nothing to do before it.
    #[must_use]
    pub fn after_idle(&self) -> bool {
        self.idle_us > 0.0
    }

    /// Token rows of a greater step before it, whose activations took the caches that this one needs; none of those behind
    /// [`ROWS_THAT_COUNT`](CostModel::ROWS_THAT_COUNT).
    #[must_use]
    pub(super) fn rows_displacing(&self) -> u32 {
        self.rows_before.min(CostModel::ROWS_THAT_COUNT).saturating_sub(self.rows_run())
    }

    /// What idleness costs by: 1, its token rows that count, its seconds that count, and those rows times those seconds.
    pub(super) fn coldness(&self) -> [f64; 4] {
        let rows = f64::from(self.rows_run().min(CostModel::ROWS_THAT_COUNT));
        let seconds = (self.idle_us * 1e-6).min(CostModel::SECONDS_THAT_COUNT);
        [1.0, rows, seconds, rows * seconds]
    }

    /// One more request in the proposer's pass number `depth`, from 0, with `tokens` token rows behind `context` tokens.
    pub fn add_draft_row(&mut self, depth: usize, context: u32, tokens: u32) {
        if self.draft_passes.len() <= depth {
            self.draft_passes.resize(depth + 1, 0);
        }
        self.draft_passes[depth] += 1;
        if depth == 0 {
            self.draft_catch_up += tokens;
        }
        let (context, tokens) = (u64::from(context), u64::from(tokens));
        self.draft_reads += context;
        self.draft_pairs += tokens * context + tokens * tokens.saturating_sub(1) / 2;
    }
}

/// Microseconds of a step, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepCost {
    /// Making the plan.
    pub schedule: f64,
    /// Building the metadata.
    pub metadata: f64,
    /// Proposing drafts.
    pub propose: f64,
    /// The forward pass.
    pub execute: f64,
    /// Sampling, and acceptance.
    pub sample: f64,
    /// The rest: bookkeeping, streaming, tracing.
    pub other: f64,
}

impl StepCost {
    /// All of it.
    #[must_use]
    pub fn total_us(&self) -> f64 {
        self.schedule + self.metadata + self.propose + self.execute + self.sample + self.other
    }
}

/// What a proposer costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DraftCost {
    /// A pass, by its token rows; without points for a proposer that has no model.
    #[serde(default)]
    pub pass: CostCurve,
    /// Microseconds of proposing at all, once a step that has drafts.
    #[serde(default)]
    pub us_per_step: f64,
    /// Microseconds a drafted request.
    #[serde(default)]
    pub us_per_row: f64,
    /// Whether it keeps KV of its own, so that a request it did not draft for has to be caught up with.
    #[serde(default)]
    pub keeps_kv: bool,
}

/// How drafts fare.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The probability that the draft at a place is accepted, if those before it were; the last goes on for ever.
    pub by_position: Vec<f64>,
    /// The share of decode rows that are given drafts at all.
    pub given: f64,
}

/// The engine does nothing for a while: a garbage collection, a neighbour, a suspended process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Freeze {
    /// Seconds since the run began: the step that would begin then, or runs then, waits.
    pub at_s: f64,
    /// For so long.
    pub for_s: f64,
}

/// What a request or a step costs besides the model's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Microseconds a step, whatever is in it.
    #[serde(default)]
    pub us_per_step: f64,
    /// Microseconds a request in the step.
    #[serde(default)]
    pub us_per_row: f64,
    /// Microseconds a query token.
    #[serde(default)]
    pub us_per_token: f64,
}

impl Overhead {
    /// Microseconds of a step of so many requests and query tokens.
    #[must_use]
    pub fn us(&self, rows: u32, tokens: u32) -> f64 {
        self.us_per_step + self.us_per_row * f64::from(rows) + self.us_per_token * f64::from(tokens)
    }
}

/// What steps cost on some hardware.
///
/// # A step
///
/// | stage | microseconds |
/// |---|---|
/// | execute | `target` at its token rows, those that a graph adds included, + `target.us_per_read` a token of context read + `target.us_per_context` a pair of a query token and a token before it + `us_per_single_read` a token read by a request of one query token + `us_per_prefill_pair` a pair in a row that computes a prompt + `us_per_metadata_row` a row of the attention call + `us_per_logit_row` a row of logits + `us_per_eager_step` if no graph is replayed + `us_per_row_before` for each of the first 1024 token rows by which the step before was greater + after idleness `us_after_idle`, `us_per_row_after_idle` for each of its first 1024 token rows, `us_per_idle_s` for each of the first 2 seconds of idleness, and `us_per_row_and_idle_s` for each of both |
/// | sample | `us_per_sampled_row` a row of logits |
/// | propose | the proposer's `us_per_step`, `us_per_row` a drafted request, and its `pass` for each pass |
/// | schedule, metadata | those [`Overhead`]s |
/// | other | `us_per_step`, `us_per_row` a request, `us_per_token` a query token, `us_per_prefill` a request whose prompt is computed, `us_per_begun` a request that was given to the engine before, `us_per_ended` one that ends |
///
/// Between the points of a curve the cost is a straight line; below the first it is the first's, beyond the last it goes
/// on with the last slope ([`CostCurve::us`]). What is left out costs nothing.
///
/// # One by hand
///
/// Only `name` and `target.points` are needed. A target of 8B parameters in bf16 on an H100 reads 16 GB a pass at some
/// 3 TB/s (5.3 ms), computes 16 GFLOP a token at some 500 TFLOP/s (32 us a token once that is more), and reads 128 KiB of
/// KV a token of context (0.044 us). These are figures of a data sheet and none of a measurement:
///
/// ```
/// let model = pagedraft_workloads::sim::CostModel::from_json(
///     r#"{
///   "name": "8B, bf16, one H100, from its data sheet",
///   "target": {
///     "points": [[1, 5400], [64, 5600], [128, 6000], [256, 8300], [512, 16500], [2048, 66000]],
///     "us_per_read": 0.044,
///     "us_per_context": 0.0012
///   },
///   "us_per_step": 300,
///   "us_per_row": 2,
///   "us_per_logit_row": 1,
///   "us_per_eager_step": 4000,
///   "proposers": {
///     "ngram": {"us_per_step": 20, "us_per_row": 5},
///     "draft": {"pass": {"points": [[1, 700], [128, 800], [512, 2000]], "us_per_read": 0.003}, "keeps_kv": true}
///   },
///   "acceptance": {"draft": {"by_position": [0.75, 0.7, 0.68], "given": 1.0}}
/// }"#,
/// )?;
/// assert_eq!(model.target.us(64), 5600.0);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostModel {
    /// What it is of: model, hardware, who measured it when.
    pub name: String,
    /// The forward pass, by token rows, and its attention.
    pub target: CostCurve,
    /// Microseconds a step, whatever is in it: bookkeeping, streaming, tracing.
    #[serde(default)]
    pub us_per_step: f64,
    /// Microseconds a request in the step, for the same.
    #[serde(default)]
    pub us_per_row: f64,
    /// Microseconds a query token, for the same: prefixes that are published.
    #[serde(default)]
    pub us_per_token: f64,
    /// Microseconds a request whose prompt is computed, for the same: its admission, its first blocks.
    #[serde(default)]
    pub us_per_prefill: f64,
    /// Microseconds a request that the engine is given, for the same.
    #[serde(default)]
    pub us_per_begun: f64,
    /// Microseconds a request that ends, for the same: its output, its line.
    #[serde(default)]
    pub us_per_ended: f64,
    /// Microseconds a token of context read by a request of one query token, besides `us_per_read`: others read it for several
    /// tokens, or, in rows of batch expansion, again from the caches.
    #[serde(default)]
    pub us_per_single_read: f64,
    /// Microseconds a pair of a query token and a token before it in a row that computes a prompt, besides `us_per_context`:
    /// long rows read their context again and again.
    #[serde(default)]
    pub us_per_prefill_pair: f64,
    /// Microseconds a row of the attention call, whatever its context.
    #[serde(default)]
    pub us_per_metadata_row: f64,
    /// Microseconds a token row whose logits are computed.
    #[serde(default)]
    pub us_per_logit_row: f64,
    /// Microseconds of choosing a token from a row of logits, and of judging a draft.
    #[serde(default)]
    pub us_per_sampled_row: f64,
    /// Microseconds that a step takes longer when no graph is replayed.
    #[serde(default)]
    pub us_per_eager_step: f64,
    /// Microseconds from a request's arrival until an engine that had nothing to do looks at it: those that come until then
    /// share its first step.
    #[serde(default)]
    pub us_to_wake: f64,
    /// Microseconds that a step takes longer for each token row by which the step before it was greater, of its first
    /// [`ROWS_THAT_COUNT`](Self::ROWS_THAT_COUNT): its activations took the caches.
    #[serde(default)]
    pub us_per_row_before: f64,
    /// Microseconds that a step takes longer when the engine had nothing to do before it: threads and cores wake up.
    #[serde(default)]
    pub us_after_idle: f64,
    /// And for each of its first [`ROWS_THAT_COUNT`](Self::ROWS_THAT_COUNT) token rows: caches are cold.
    #[serde(default)]
    pub us_per_row_after_idle: f64,
    /// And for each second of idleness, of the first [`SECONDS_THAT_COUNT`](Self::SECONDS_THAT_COUNT): the colder.
    #[serde(default)]
    pub us_per_idle_s: f64,
    /// And for each of those rows times each of those seconds.
    #[serde(default)]
    pub us_per_row_and_idle_s: f64,
    /// Making the plan.
    #[serde(default)]
    pub schedule: Overhead,
    /// Building the metadata and binding the inputs.
    #[serde(default)]
    pub metadata: Overhead,
    /// Proposers, by name: `draft`, `ngram`, `synthetic`.
    #[serde(default)]
    pub proposers: BTreeMap<String, DraftCost>,
    /// How their drafts fared when it was measured, by the same names.
    #[serde(default)]
    pub acceptance: BTreeMap<String, Acceptance>,
    /// When the engine does nothing.
    #[serde(default)]
    pub freezes: Vec<Freeze>,
}

impl CostModel {
    /// Token rows in which an engine that had nothing to do gets warm, and in which one that is warm fills the caches.
    pub const ROWS_THAT_COUNT: u32 = 1024;
    /// Seconds of idleness behind which an engine gets no colder.
    pub const SECONDS_THAT_COUNT: f64 = 2.0;

    /// What the embedded model costs on the machine this was developed on; its name has both.
    #[must_use]
    pub fn builtin() -> Self {
        // A test reads it. An empty model, if it were none, is refused by `check`.
        Self::from_json(include_str!("builtin_cost.json")).unwrap_or_default()
    }

    /// What a step of this shape takes. Of a model that [`check`](Self::check)s every part is finite and none negative.
    #[must_use]
    pub fn step(&self, shape: &StepShape, proposer: Option<&DraftCost>) -> StepCost {
        let eager = if shape.replayed { 0.0 } else { self.us_per_eager_step };
        let idle = match shape.after_idle() {
            true => {
                let [one, rows, seconds, both] = shape.coldness();
                self.us_after_idle * one
                    + self.us_per_row_after_idle * rows
                    + self.us_per_idle_s * seconds
                    + self.us_per_row_and_idle_s * both
            }
            false => self.us_per_row_before * f64::from(shape.rows_displacing()),
        };
        let logit_rows = f64::from(shape.logit_rows);
        StepCost {
            schedule: self.schedule.us(shape.plan_rows, shape.token_rows),
            metadata: self.metadata.us(shape.plan_rows, shape.token_rows),
            propose: proposer.map_or(0.0, |proposer| proposer.us(shape)),
            execute: with_context(&self.target, shape.rows_run(), shape.context_reads, shape.context_pairs)
                + shape.single_reads as f64 * self.us_per_single_read
                + shape.prefill_pairs as f64 * self.us_per_prefill_pair
                + f64::from(shape.metadata_rows) * self.us_per_metadata_row
                + logit_rows * self.us_per_logit_row
                + eager
                + idle,
            sample: logit_rows * self.us_per_sampled_row,
            other: self.us_per_step
                + self.us_per_row * f64::from(shape.plan_rows)
                + self.us_per_token * f64::from(shape.token_rows)
                + self.us_per_prefill * f64::from(shape.prefills)
                + self.us_per_begun * f64::from(shape.begun)
                + self.us_per_ended * f64::from(shape.ended),
        }
    }

    /// What a control of draft lengths starts from: decode rows, whose logits are all computed. A proposer without a name
    /// here costs nothing.
    #[must_use]
    pub fn step_costs(&self, proposer: Option<&str>) -> StepCosts {
        let row_us = self.us_per_logit_row + self.us_per_sampled_row;
        let mut target = self.target.clone();
        for (rows, us) in &mut target.points {
            *us += row_us * f64::from(*rows);
        }
        let proposer = proposer.and_then(|name| self.proposers.get(name));
        StepCosts {
            target,
            draft: proposer.map_or_else(CostCurve::default, DraftCost::by_row),
            draft_per_step_us: proposer.map_or(0.0, |proposer| proposer.us_per_step),
            overhead_us: self.us_per_step + self.schedule.us_per_step + self.metadata.us_per_step,
            proposer_keeps_kv: proposer.is_some_and(|proposer| proposer.keeps_kv),
        }
    }
}

impl DraftCost {
    /// Microseconds of proposing in a step of this shape.
    #[must_use]
    pub fn us(&self, shape: &StepShape) -> f64 {
        let Some((&drafted, later)) = shape.draft_passes.split_first() else { return 0.0 };
        // Rows that only catch up take part in the first pass, whether drafted for or not.
        let first =
            with_context(&self.pass, shape.draft_catch_up.max(drafted), shape.draft_reads, shape.draft_pairs);
        let later: f64 = later.iter().map(|&rows| self.pass.us(rows)).sum();
        self.us_per_step + self.us_per_row * f64::from(drafted) + first + later
    }

    /// A pass by its rows, what each row costs besides included.
    fn by_row(&self) -> CostCurve {
        let mut pass = self.pass.clone();
        for (rows, us) in &mut pass.points {
            *us += self.us_per_row * f64::from(*rows);
        }
        pass
    }
}

fn with_context(curve: &CostCurve, rows: u32, reads: u64, pairs: u64) -> f64 {
    curve.us(rows) + curve.us_per_read * reads as f64 + curve.us_per_context * pairs as f64
}

#[cfg(test)]
mod tests;
