//! The record that the executor makes of a step.

use pagedraft_model::{Ran, StepInputs};
use pagedraft_scheduler::RequestKey;
use serde::Serialize;

use crate::canvas::CanvasPass;
use crate::sampling::RowLogprobs;

/// The microseconds that a step spent in each of its stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StageTimes {
    /// Building the metadata and gathering the inputs.
    pub metadata: f64,
    /// Proposing drafts.
    pub propose: f64,
    /// The forward pass, with the logits of sampled rows and of prompt positions.
    pub execute: f64,
    /// Choosing tokens and computing logprobs.
    pub sample: f64,
}

impl StageTimes {
    /// Adds the times of another step.
    pub fn add(&mut self, other: &Self) {
        self.metadata += other.metadata;
        self.propose += other.propose;
        self.execute += other.execute;
        self.sample += other.sample;
    }
}

/// The log probabilities at one position of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs {
    /// The request whose prompt it is.
    pub request: RequestKey,
    /// The position of the token that the distribution is for.
    pub position: u32,
    /// The log probabilities of the most likely tokens there, and of the prompt's own token.
    pub logprobs: RowLogprobs,
}

/// What one further segment of a step ran with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SegmentRecord {
    /// Token ids, positions and attention metadata of the rows that reached the segment.
    pub inputs: StepInputs,
    /// For each metadata row, the index of the plan row it belongs to.
    pub plan_rows: Vec<u32>,
    /// Whether a graph was replayed or the segment ran eagerly, and why if a graph was looked for in vain.
    #[serde(skip)]
    pub ran: Ran,
}

/// What was decided about a prompt between two segments: which of its tokens go on.
#[derive(Clone, Debug, PartialEq)]
pub struct CutRecord {
    /// The request.
    pub request: RequestKey,
    /// The segment behind which tokens were dropped.
    pub segment: u16,
    /// How many of the prompt's tokens had reached its end.
    pub reached: u32,
    /// The positions of those that go on, ascending.
    pub kept: Vec<u32>,
    /// The least, the greatest and the mean score.
    pub scores: [f32; 3],
}

/// The record of a step: the inputs and the metadata that it ran with.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ExecutionRecord {
    /// The stage times in microseconds. Scheduling is not among them, because the caller does it.
    pub time_us: StageTimes,
    /// Whether a graph was replayed or the step ran eagerly, and why if a graph was looked for in vain.
    #[serde(skip)]
    pub ran: Ran,
    /// The token ids, positions and attention metadata: the very object that the model was given.
    pub inputs: StepInputs,
    /// For each metadata row, the index of the plan row it belongs to.
    pub plan_rows: Vec<u32>,
    /// What the model's further segments ran with, in order. Only the first `more_segments` belong to this
    /// step.
    #[serde(skip)]
    pub more: Vec<SegmentRecord>,
    /// How many further segments the model has.
    #[serde(skip)]
    pub more_segments: usize,
    /// The microseconds, among those of the forward pass, in which tokens of prompts were scored and chosen.
    #[serde(skip)]
    pub scoring_us: f64,
    /// What was decided about prompts that drop tokens, in order.
    #[serde(skip)]
    pub cuts: Vec<CutRecord>,
    /// What the passes over canvases did, in the order of the plan's rows.
    #[serde(skip)]
    pub passes: Vec<CanvasPass>,
    /// Requests that failed in this step, each with the reason.
    #[serde(skip)]
    pub faults: Vec<(RequestKey, String)>,
    /// The log probabilities that were asked for with generated tokens, in the order of the outcome's rows.
    #[serde(skip)]
    pub logprobs: Vec<(RequestKey, RowLogprobs)>,
    /// The log probabilities of prompt positions that were asked for.
    #[serde(skip)]
    pub prompt_logprobs: Vec<PromptLogprobs>,
    /// The logits that each token was chosen from, if the executor was told to keep them.
    #[serde(skip)]
    pub logits: Vec<(RequestKey, Vec<f32>)>,
    /// The hidden states after the final norm from which those logits were computed, if the executor was told to keep
    /// them.
    #[serde(skip)]
    pub hidden: Vec<(RequestKey, Vec<f32>)>,
}

impl ExecutionRecord {
    /// Clears what the step before left, and keeps the buffers.
    pub(crate) fn clear(&mut self) {
        self.ran = Ran::default();
        self.plan_rows.clear();
        self.scoring_us = 0.0;
        self.cuts.clear();
        self.passes.clear();
        self.faults.clear();
        self.logprobs.clear();
        self.prompt_logprobs.clear();
        self.logits.clear();
        self.hidden.clear();
    }

    /// Drops what was written for a request whose row is void.
    pub(crate) fn forget(&mut self, request: RequestKey) {
        self.logprobs.retain(|(own, _)| *own != request);
        self.prompt_logprobs.retain(|own| own.request != request);
        self.logits.retain(|(own, _)| *own != request);
        self.hidden.retain(|(own, _)| *own != request);
    }

    /// Whether all segments of the step were replayed from graphs.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        let more = self.more.iter().take(self.more_segments);
        matches!(self.ran, Ran::Graph(_))
            && more.filter(|one| !one.inputs.tokens.is_empty()).all(|one| matches!(one.ran, Ran::Graph(_)))
    }
}
