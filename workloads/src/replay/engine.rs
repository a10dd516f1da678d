//! The data that a replay and an engine, live or simulated, exchange. Times are nanoseconds since the run
//! began.

use pagedraft_scheduler::FinishReason;

use crate::trace::PoolCounts;

/// A request in flight: its index in the recorder, which is reused once it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u32);

/// What a step did. The buffers are reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// The engine, if there are several.
    pub replica: u32,
    /// The engine's number for the step.
    pub step: u64,
    /// When the step began.
    pub start_ns: u64,
    /// When its tokens were there.
    pub end_ns: u64,
    /// One row for each plan row whose request was not aborted.
    pub rows: Vec<RowReport>,
    /// The requests that ended with it. Each has a row too.
    pub ended: Vec<EndedRequest>,
    /// The number of prompt tokens computed, including those computed again after a preemption.
    pub prefill_tokens: u32,
    /// The number of rows that decoded, with or without drafts.
    pub decode_rows: u32,
    /// The number of requests whose blocks were taken back.
    pub preempted: u32,
    /// The number of admitted requests during the step.
    pub running: u32,
    /// The number of waiting requests during the step.
    pub waiting: u32,
    /// The KV pool during the step: it has taken what it planned, and requests that end with it have not
    /// given anything back yet.
    pub pool_during: PoolCounts,
    /// The KV pool after the step.
    pub pool: PoolCounts,
    /// Whether a graph was replayed.
    pub replayed: bool,
}

/// What a step gave to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowReport {
    /// The request.
    pub ticket: Ticket,
    /// The number of tokens emitted and kept; 0 for a piece of a prompt.
    pub new_tokens: u16,
    /// The number of drafts scored.
    pub num_drafts: u16,
    /// The number of drafts accepted.
    pub num_accepted: u16,
    /// The number of tokens whose KV the row read or wrote, with its new tokens and drafts.
    pub context: u32,
    /// The number of prompt tokens that were found in the prefix cache when the request was first admitted.
    pub cached_tokens: u32,
}

/// The end of a request.
#[derive(Clone, Debug)]
pub struct EndedRequest {
    /// The request.
    pub ticket: Ticket,
    /// The reason.
    pub reason: FinishReason,
    /// What was wrong with it, if it failed.
    pub error: Option<String>,
    /// The number of prompt tokens whose KV was found in the prefix cache when it was first admitted.
    pub cached_tokens: u32,
    /// How often its blocks were taken back.
    pub preemptions: u32,
    /// The number of blocks that it held at its end.
    pub blocks_held: u32,
    /// The ids of those of its blocks that were found in the prefix cache when it was first admitted.
    pub prefix_blocks: Vec<u32>,
    /// Its output; `None` in a simulation, which has none.
    pub output: Option<Output>,
}

/// The output of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The token ids.
    pub token_ids: Vec<u32>,
    /// Their text, if the model has a tokenizer.
    pub text: String,
}
