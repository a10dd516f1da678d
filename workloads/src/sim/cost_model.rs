//! Says what a step costs. The figures are measured by `pagedraft bench calibrate`, or given by hand.

use std::collections::BTreeMap;

use pagedraft_scheduler::{CostCurve, StepCosts};
use serde::{Deserialize, Serialize};

/// The work of a step, as far as its cost depends on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepShape {
    /// The number of requests in the step.
    pub plan_rows: u32,
    /// The number of rows of the attention call.
    pub metadata_rows: u32,
    /// The number of query tokens, drafts included. Of a model that is cut into segments, it is the number that all of the model
    /// would compute with the same work.
    pub token_rows: u32,
    /// The query tokens by segment, where the model is cut into several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SegmentShape>,
    /// The number of rows that a graph adds as padding.
    pub pad_rows: u32,
    /// The number of token rows whose logits are computed.
    pub logit_rows: u32,
    /// The number of tokens whose KV is read, once for each row of the attention call: the sum of its
    /// contexts.
    pub context_reads: u64,
    /// The part of `context_reads` that belongs to requests with one query token and no drafts.
    pub single_reads: u64,
    /// The number of pairs of a query token and a token before it: the sum of the contexts of all query
    /// tokens.
    pub context_pairs: u64,
    /// The part of `context_pairs` in rows that compute prompts.
    pub prefill_pairs: u64,
    /// The number of requests whose prompts are computed.
    pub prefills: u32,
    /// The number of requests that the engine was given before the step.
    pub begun: u32,
    /// The number of requests that end with the step.
    pub ended: u32,
    /// Whether a graph is replayed.
    pub replayed: bool,
    /// The microseconds that the engine was idle before the step; 0 if it follows another step directly.
    pub idle_us: f64,
    /// The number of token rows of the step directly before it; 0 after idleness.
    pub rows_before: u32,
    /// For each pass of the proposer, the number of requests that it drafts for. It is empty without a
    /// proposer.
    pub draft_passes: Vec<u32>,
    /// The number of token rows of the first pass, including tokens that the proposer lagged behind.
    pub draft_catch_up: u32,
    /// The number of tokens whose KV the proposer reads, over all passes: the sum of the contexts of their
    /// rows.
    pub draft_reads: u64,
    /// The number of pairs of a query token of these passes and a token before it.
    pub draft_pairs: u64,
}

/// The work of a step in one segment of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SegmentShape {
    /// The segment's share of the work of the whole model.
    pub share: f64,
    /// The number of its query tokens, drafts included.
    pub token_rows: u32,
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

    /// The number of token rows that the forward pass computes, including those that a graph adds.
    #[must_use]
    pub fn rows_run(&self) -> u32 {
        self.token_rows.saturating_add(self.pad_rows)
    }

    /// Whether the engine was idle before the step.
    #[must_use]
    pub fn after_idle(&self) -> bool {
        self.idle_us > 0.0
    }

    /// By how many token rows the step before was greater. The activations of those rows displaced what
    /// this step needs from the caches. Rows beyond [`ROWS_THAT_COUNT`](CostModel::ROWS_THAT_COUNT) do not
    /// count.
    #[must_use]
    pub(super) fn rows_displacing(&self) -> u32 {
        self.rows_before.min(CostModel::ROWS_THAT_COUNT).saturating_sub(self.rows_run())
    }

    /// The four factors by which idleness costs: 1, the token rows that count, the seconds that count, and
    /// their product.
    pub(super) fn coldness(&self) -> [f64; 4] {
        let rows = f64::from(self.rows_run().min(CostModel::ROWS_THAT_COUNT));
        let seconds = (self.idle_us * 1e-6).min(CostModel::SECONDS_THAT_COUNT);
        [1.0, rows, seconds, rows * seconds]
    }

    /// Adds a request to the proposer's pass number `depth`, counted from 0. It has `tokens` token rows
    /// after `context` tokens.
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

/// The microseconds that a step takes, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepCost {
    /// The time to make the plan.
    pub schedule: f64,
    /// The time to build the metadata.
    pub metadata: f64,
    /// The time to propose drafts.
    pub propose: f64,
    /// The time of the forward pass.
    pub execute: f64,
    /// The time of sampling and acceptance.
    pub sample: f64,
    /// The time of everything else: bookkeeping, streaming, tracing.
    pub other: f64,
}

impl StepCost {
    /// The time of all stages together.
    #[must_use]
    pub fn total_us(&self) -> f64 {
        self.schedule + self.metadata + self.propose + self.execute + self.sample + self.other
    }
}

/// What a proposer costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DraftCost {
    /// The cost of a pass, by its token rows. It has no points for a proposer without a model.
    #[serde(default)]
    pub pass: CostCurve,
    /// The microseconds per step in which it is asked for drafts.
    #[serde(default)]
    pub us_per_step: f64,
    /// The microseconds per request that is drafted for.
    #[serde(default)]
    pub us_per_row: f64,
    /// Whether it has KV of its own, so that it must catch up with a request that it has not drafted for.
    #[serde(default)]
    pub keeps_kv: bool,
}

/// How often drafts are accepted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// For each position, the probability that the draft there is accepted if those before it were. The
    /// last entry holds for all later positions.
    pub by_position: Vec<f64>,
    /// The share of decode rows that get drafts at all.
    pub given: f64,
}

/// A time in which the engine does nothing, because of a garbage collection, another program or a suspended
/// process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Freeze {
    /// When it begins, in seconds since the run began. A step that would begin then, or is running, waits.
    pub at_s: f64,
    /// How many seconds it lasts.
    pub for_s: f64,
}

/// The cost of a step besides the model's own work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// The microseconds per step.
    #[serde(default)]
    pub us_per_step: f64,
    /// The microseconds per request in the step.
    #[serde(default)]
    pub us_per_row: f64,
    /// The microseconds per query token.
    #[serde(default)]
    pub us_per_token: f64,
}

impl Overhead {
    /// The microseconds for a step with this many requests and query tokens.
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
/// | execute | `target` at its token rows, those that a graph adds included (of a model that is cut into segments, the share of each segment at the rows of that segment), + `target.us_per_read` a token of context read + `target.us_per_context` a pair of a query token and a token before it + `us_per_single_read` a token read by a request of one query token + `us_per_prefill_pair` a pair in a row that computes a prompt + `us_per_metadata_row` a row of the attention call + `us_per_logit_row` a row of logits + `us_per_eager_step` if no graph is replayed + `us_per_row_before` for each of the first 1024 token rows by which the step before was greater + after idleness `us_after_idle`, `us_per_row_after_idle` for each of its first 1024 token rows, `us_per_idle_s` for each of the first 2 seconds of idleness, and `us_per_row_and_idle_s` for each of both |
/// | sample | `us_per_sampled_row` a row of logits |
/// | propose | the proposer's `us_per_step`, `us_per_row` a drafted request, and its `pass` for each pass |
/// | schedule, metadata | those [`Overhead`]s |
/// | other | `us_per_step`, `us_per_row` a request, `us_per_token` a query token, `us_per_prefill` a request whose prompt is computed, `us_per_begun` a request that was given to the engine before, `us_per_ended` one that ends |
///
/// Between the points of a curve the cost is a straight line. Below the first point it is that of the first
/// point, and beyond the last one the last slope goes on ([`CostCurve::us`]). Whatever is left out costs
/// nothing.
///
/// # A model written by hand
///
/// Only `name` and `target.points` are needed. For example, a target of 8B parameters in bf16 on an H100
/// reads 16 GB per pass at about 3 TB/s (5.3 ms), computes 16 GFLOP per token at about 500 TFLOP/s (32 µs
/// per token once that takes longer), and reads 128 KiB of KV per token of context (0.044 µs). These
/// figures are from a data sheet, none is measured:
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
    /// What it describes: the model, the hardware, who measured it and when.
    pub name: String,
    /// The cost of the forward pass, by token rows, and of its attention.
    pub target: CostCurve,
    /// The microseconds per step for bookkeeping, streaming and tracing.
    #[serde(default)]
    pub us_per_step: f64,
    /// The microseconds per request in the step for the same.
    #[serde(default)]
    pub us_per_row: f64,
    /// The microseconds per query token for the same, such as publishing prefixes.
    #[serde(default)]
    pub us_per_token: f64,
    /// The microseconds per request whose prompt is computed for the same, such as its admission and its
    /// first blocks.
    #[serde(default)]
    pub us_per_prefill: f64,
    /// The microseconds per request that the engine is given, for the same.
    #[serde(default)]
    pub us_per_begun: f64,
    /// The microseconds per request that ends for the same, such as its output and its line.
    #[serde(default)]
    pub us_per_ended: f64,
    /// The microseconds per token of context read by a request with one query token, in addition to
    /// `us_per_read`. Other requests share a read among several query tokens, or, with batch expansion,
    /// read again from the caches.
    #[serde(default)]
    pub us_per_single_read: f64,
    /// The microseconds per pair of a query token and a token before it in a row that computes a prompt, in
    /// addition to `us_per_context`. Long rows read their context repeatedly.
    #[serde(default)]
    pub us_per_prefill_pair: f64,
    /// The microseconds per row of the attention call, whatever its context.
    #[serde(default)]
    pub us_per_metadata_row: f64,
    /// The microseconds per token row whose logits are computed.
    #[serde(default)]
    pub us_per_logit_row: f64,
    /// The microseconds for choosing a token from a row of logits, or for judging a draft.
    #[serde(default)]
    pub us_per_sampled_row: f64,
    /// The microseconds that a step takes longer if no graph is replayed.
    #[serde(default)]
    pub us_per_eager_step: f64,
    /// The microseconds from a request's arrival until an idle engine notices it. Requests that arrive in
    /// that time share its first step.
    #[serde(default)]
    pub us_to_wake: f64,
    /// The microseconds that a step takes longer for each token row by which the step before it was
    /// greater. Only the first [`ROWS_THAT_COUNT`](Self::ROWS_THAT_COUNT) rows count, because then the
    /// caches are full of its activations.
    #[serde(default)]
    pub us_per_row_before: f64,
    /// The microseconds that a step takes longer if the engine was idle before it, because threads and
    /// cores must wake up.
    #[serde(default)]
    pub us_after_idle: f64,
    /// The additional microseconds after idleness for each of the first
    /// [`ROWS_THAT_COUNT`](Self::ROWS_THAT_COUNT) token rows, because caches are cold.
    #[serde(default)]
    pub us_per_row_after_idle: f64,
    /// The additional microseconds for each of the first [`SECONDS_THAT_COUNT`](Self::SECONDS_THAT_COUNT)
    /// seconds of idleness.
    #[serde(default)]
    pub us_per_idle_s: f64,
    /// The additional microseconds for each of those rows times each of those seconds.
    #[serde(default)]
    pub us_per_row_and_idle_s: f64,
    /// The cost of making the plan.
    #[serde(default)]
    pub schedule: Overhead,
    /// The cost of building the metadata and binding the inputs.
    #[serde(default)]
    pub metadata: Overhead,
    /// The proposers, by name: `draft`, `ngram`, `suffix`, `synthetic`.
    #[serde(default)]
    pub proposers: BTreeMap<String, DraftCost>,
    /// How often their drafts were accepted when it was measured, by the same names.
    #[serde(default)]
    pub acceptance: BTreeMap<String, Acceptance>,
    /// The times in which the engine does nothing.
    #[serde(default)]
    pub freezes: Vec<Freeze>,
}

impl CostModel {
    /// The number of token rows in which an idle engine gets warm, and in which a warm one fills the
    /// caches.
    pub const ROWS_THAT_COUNT: u32 = 1024;
    /// The seconds of idleness after which an engine gets no colder.
    pub const SECONDS_THAT_COUNT: f64 = 2.0;

    /// The cost of the embedded model on the machine on which this was developed. Its name says which they
    /// are.
    #[must_use]
    pub fn builtin() -> Self {
        // A test reads this file. Should it be unreadable all the same, `check` refuses the empty model.
        Self::from_json(include_str!("builtin_cost.json")).unwrap_or_default()
    }

    /// The time that a step of this shape takes. If the model passed [`check`](Self::check), every part is
    /// finite and none is negative.
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
            execute: self.forward_us(shape)
                + self.target.us_per_read * shape.context_reads as f64
                + self.target.us_per_context * shape.context_pairs as f64
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

    /// The microseconds of the forward pass without its attention: each segment takes its share of what the whole model would take
    /// for the segment's rows.
    fn forward_us(&self, shape: &StepShape) -> f64 {
        if shape.segments.is_empty() {
            return self.target.us(shape.rows_run());
        }
        let runs = shape.segments.iter().filter(|segment| segment.token_rows > 0);
        runs.map(|segment| segment.share * self.target.us(segment.token_rows + shape.pad_rows)).sum()
    }

    /// The costs that the control of draft lengths starts from. They are for decode rows, whose logits are
    /// all computed. A proposer that the model does not name costs nothing.
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
    /// The microseconds of proposing in a step of this shape.
    #[must_use]
    pub fn us(&self, shape: &StepShape) -> f64 {
        let Some((&drafted, later)) = shape.draft_passes.split_first() else { return 0.0 };
        // Rows that only catch up take part in the first pass, whether they get drafts or not.
        let first =
            with_context(&self.pass, shape.draft_catch_up.max(drafted), shape.draft_reads, shape.draft_pairs);
        let later: f64 = later.iter().map(|&rows| self.pass.us(rows)).sum();
        self.us_per_step + self.us_per_row * f64::from(drafted) + first + later
    }

    /// The cost of a pass by its rows, including what each row costs in addition.
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
