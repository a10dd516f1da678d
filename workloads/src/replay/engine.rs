//! What passes between a replay and an engine, live or simulated. Times are nanoseconds since the run began.

use pagedraft_scheduler::FinishReason;

use crate::trace::PoolCounts;

/// A request in flight: its place in the recorder, used again once it has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u32);

/// What a step did. Buffers are reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// Which engine of several.
    pub replica: u32,
    /// The engine's number for it.
    pub step: u64,
    /// When it began.
    pub start_ns: u64,
    /// When its tokens were there.
    pub end_ns: u64,
    /// A row for each plan row whose request was not aborted.
    pub rows: Vec<RowReport>,
    /// Requests that ended with it; each has a row too.
    pub ended: Vec<EndedRequest>,
    /// Prompt tokens (and tokens recomputed after a preemption) computed.
    pub prefill_tokens: u32,
    /// Rows that decoded, drafts or none.
    pub decode_rows: u32,
    /// Requests whose blocks were taken back.
    pub preempted: u32,
    /// Admitted requests, as the step ran.
    pub running: u32,
    /// Requests that waited, as the step ran.
    pub waiting: u32,
    /// The KV pool as the step ran: what it planned is taken, what ends with it is not yet given back.
    pub pool_during: PoolCounts,
    /// The KV pool, after the step.
    pub pool: PoolCounts,
    /// Whether a graph was replayed.
    pub replayed: bool,
}

/// What a step gave one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowReport {
    /// Whose.
    pub ticket: Ticket,
    /// Tokens emitted and kept: 0 for a piece of a prompt.
    pub new_tokens: u16,
    /// Drafts scored.
    pub num_drafts: u16,
    /// Drafts accepted.
    pub num_accepted: u16,
    /// Tokens of KV that the row read or wrote, its new tokens and drafts included.
    pub context: u32,
    /// Prompt tokens that were found in the prefix cache when it was first admitted.
    pub cached_tokens: u32,
}

/// The end of a request.
#[derive(Clone, Debug)]
pub struct EndedRequest {
    /// Whose.
    pub ticket: Ticket,
    /// Why.
    pub reason: FinishReason,
    /// What was wrong with it, where it failed.
    pub error: Option<String>,
    /// Prompt tokens whose KV was there already when it was first admitted.
    pub cached_tokens: u32,
    /// How often its blocks were taken back.
    pub preemptions: u32,
    /// Blocks it held at its end.
    pub blocks_held: u32,
    /// Ids of those of its blocks that were found in the prefix cache when it was first admitted.
    pub prefix_blocks: Vec<u32>,
    /// What it said; `None` where nobody spoke (a simulation).
    pub output: Option<Output>,
}

/// What a request gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Token ids.
    pub token_ids: Vec<u32>,
    /// Their text, where the model has a tokenizer.
    pub text: String,
}
