//! What a step puts on record.

use pagedraft_model::{Ran, StepInputs};
use pagedraft_scheduler::RequestKey;
use serde::Serialize;

use crate::sampling::RowLogprobs;

/// Microseconds a step spent in each of its stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageTimes {
    /// Building the metadata and gathering the inputs.
    pub metadata: f64,
    /// Proposing drafts.
    pub propose: f64,
    /// The forward pass, logits included, those of prompt positions too.
    pub execute: f64,
    /// Choosing tokens and computing logprobs.
    pub sample: f64,
}

impl StageTimes {
    /// Adds those of another step.
    pub fn add(&mut self, other: &Self) {
        self.metadata += other.metadata;
        self.propose += other.propose;
        self.execute += other.execute;
        self.sample += other.sample;
    }
}

/// Log probabilities of one position of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs {
    /// Whose prompt.
    pub request: RequestKey,
    /// Position of the token that the distribution is of.
    pub position: u32,
    /// The best tokens there, and the prompt's own.
    pub logprobs: RowLogprobs,
}

/// What one further segment of a step ran with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SegmentRecord {
    /// Token ids, positions and attention metadata of the rows that reached the segment.
    pub inputs: StepInputs,
    /// For each metadata row the plan row it belongs to.
    pub plan_rows: Vec<u32>,
    /// Eager (and why, where a graph was looked for), or the graph that was replayed.
    #[serde(skip)]
    pub ran: Ran,
}

/// The record of a step: the inputs and the metadata that it ran with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExecutionRecord {
    /// Stage times in microseconds; the schedule stage is the driver's.
    pub time_us: StageTimes,
    /// Eager (and why, where a graph was looked for), or the graph that was replayed.
    #[serde(skip)]
    pub ran: Ran,
    /// Token ids, positions and attention metadata: the very object that the model was given.
    pub inputs: StepInputs,
    /// For each metadata row the plan row it belongs to.
    pub plan_rows: Vec<u32>,
    /// The same of the model's further segments, in order; only the first `more_segments` are of this step.
    #[serde(skip)]
    pub more: Vec<SegmentRecord>,
    /// How many further segments the model has.
    #[serde(skip)]
    pub more_segments: usize,
    /// Requests that failed in this step, each with the reason.
    #[serde(skip)]
    pub faults: Vec<(RequestKey, String)>,
    /// Logprobs asked for, of generated tokens, in the order of the outcome's rows.
    #[serde(skip)]
    pub logprobs: Vec<(RequestKey, RowLogprobs)>,
    /// Logprobs asked for, of prompt positions.
    #[serde(skip)]
    pub prompt_logprobs: Vec<PromptLogprobs>,
    /// The logits each token was chosen from, where they are kept.
    #[serde(skip)]
    pub logits: Vec<(RequestKey, Vec<f32>)>,
    /// The hidden states behind the final norm that those logits were made of, where they are kept.
    #[serde(skip)]
    pub hidden: Vec<(RequestKey, Vec<f32>)>,
}

impl ExecutionRecord {
    /// Forgets what the step before left, buffers kept.
    pub(crate) fn clear(&mut self) {
        self.ran = Ran::default();
        self.plan_rows.clear();
        self.faults.clear();
        self.logprobs.clear();
        self.prompt_logprobs.clear();
        self.logits.clear();
        self.hidden.clear();
    }

    /// Whether the step was replayed from graphs, all segments of it.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        let more = self.more.iter().take(self.more_segments);
        matches!(self.ran, Ran::Graph(_)) && more.filter(|one| !one.inputs.tokens.is_empty()).all(|one| matches!(one.ran, Ran::Graph(_)))
    }
}
