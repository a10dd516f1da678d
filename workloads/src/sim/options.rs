use pagedraft_scheduler::SchedulerConfig;

use super::{CostModel, Router};

/// How a simulated engine speculates.
#[derive(Clone, Debug, PartialEq)]
pub struct SimSpeculation {
    /// A name in the cost model's `proposers` and `acceptance`.
    pub proposer: String,
    /// The probability that a draft is accepted, instead of the cost model's.
    pub acceptance: Option<f64>,
    /// Drafts a row at most.
    pub most: u16,
    /// Whether their number is chosen by what they cost, up to `most`.
    pub auto: bool,
    /// Whether a verify row is as many rows of one token (batch expansion).
    pub batch_expansion: bool,
}

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct SimOptions {
    /// Each engine's scheduler; `num_speculative_tokens` is set by `speculation`.
    pub scheduler: SchedulerConfig,
    /// What its steps cost.
    pub cost: CostModel,
    /// How it speculates.
    pub speculation: Option<SimSpeculation>,
    /// Whether no graph is replayed. Else a step is, as in a live engine, whose longest row has no more tokens than the last
    /// token and all drafts, and which has no more token rows than those of all seats, a step's budget, or 512.
    pub enforce_eager: bool,
    /// Engines.
    pub replicas: u32,
    /// Who gets a request.
    pub router: Router,
    /// Requests in flight at most; later ones wait at the client, from their intended arrival on.
    pub max_concurrency: Option<u32>,
    /// Tokens and acceptance are drawn from this; it is in the event log too.
    pub seed: u64,
}
