use std::sync::Arc;

use pagedraft_scheduler::SchedulerConfig;

use super::{CostModel, PromptRule, Router};

/// How a simulated engine speculates.
#[derive(Clone, Debug, PartialEq)]
pub struct SimSpeculation {
    /// The proposer's name in the cost model's `proposers` and `acceptance`.
    pub proposer: String,
    /// The probability that a draft is accepted, in place of the cost model's.
    pub acceptance: Option<f64>,
    /// The most drafts of a row.
    pub most: u16,
    /// Whether the number of drafts is chosen by what they cost, up to `most`.
    pub auto: bool,
    /// Whether a verify row becomes as many rows of one token (batch expansion).
    pub batch_expansion: bool,
}

/// The options of a simulation.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// The scheduler of each engine. `speculation` sets its `num_speculative_tokens`.
    pub scheduler: SchedulerConfig,
    /// The cost of its steps.
    pub cost: CostModel,
    /// How it speculates; `None` if it does not.
    pub speculation: Option<SimSpeculation>,
    /// How prompts lose tokens between the segments of the scheduler's model; `None` if all of each prompt goes through the whole model.
    pub prune: Option<Arc<dyn PromptRule>>,
    /// Whether every step is eager. Otherwise a step is replayed under the same conditions as in a live
    /// engine: its longest row has at most a last token and all drafts, and the step has no more token rows
    /// than those of all seats, a step's budget, or 512.
    pub enforce_eager: bool,
    /// The number of engines.
    pub replicas: u32,
    /// How requests are given to engines.
    pub router: Router,
    /// The most requests in flight. Later ones wait at the client, from their intended arrival on.
    pub max_concurrency: Option<u32>,
    /// The seed of tokens and acceptance. It is in the event log too.
    pub seed: u64,
}
