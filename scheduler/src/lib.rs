//! Decides which requests run in each step: queues, token budget and policy, as a pure step function.
//!
//! [`Scheduler::step`] writes a [`StepPlan`], which says how many tokens of which requests run. An [`Executor`] runs
//! the plan, and [`Scheduler::apply`] takes the [`StepOutcome`]. Requests are submitted and aborted in between. A plan
//! depends only on the scheduler's state and these events: there is no model in this crate, no device, tokenizer,
//! clock, environment, lock or runtime (a test reads the sources and fails when one appears). The live engine and the
//! simulator therefore drive the same code.
//!
//! # What it promises
//!
//! - While requests are unfinished, every plan has rows, and every admitted request gets its turn. The oldest running
//!   request (under [`Policy::Priority`] the best) never loses its KV blocks, so some request always finishes.
//! - A request that could never be served is refused by [`Scheduler::submit`]. A request that outgrows the whole KV
//!   pool ends with [`FinishReason::Length`], at the same token whatever runs beside it.
//! - Every KV block is freed exactly once, whatever is aborted and when. The blocks of a step in flight are given back
//!   when that step is applied.
//! - Tokens enter the prefix cache in `apply`, once they are accepted. Drafts that were not accepted never enter it.
//!
//! # What it does not
//!
//! - One step is in flight at a time. If a step was never applied because its executor failed, the next
//!   [`Scheduler::step`] gives it up: its requests are preempted and computed again.
//! - It does not look for stop strings. The caller looks for them and sets [`RowOutcome::stop`].
//! - Admission does not reserve KV for the tokens that a request may yet generate, so running requests can be
//!   preempted. A preempted request is computed again; there is no swap.
//!
//! # The rules of a step
//!
//! 1. Running requests get rows in the order of their admission. A prefill row takes the tokens that are missing,
//!    limited by `prefill_chunk` and the token budget. A decode row takes the request's last token and up to
//!    `num_speculative_tokens` drafts. Each row leaves one token of the budget for every row behind it, so that every
//!    running request has a row in every step. When the pool has no block for a row, the newest running request (under
//!    priority the worst) is preempted, and so on until there is one. A [`DraftControl`] may choose fewer drafts for a
//!    row, never more.
//! 2. If no request was preempted, waiting requests are admitted in order while budget, seats and blocks last. A
//!    request is admitted when its whole known sequence fits the free blocks and the blocks it finds in the prefix
//!    cache. The first request that does not fit ends the step.
//! 3. A fork ([`RequestSpec::fork_of`]) waits until its parent has the KV of its whole prompt except the last token.
//!    Other requests go first meanwhile. Then the fork shares the parent's full blocks, gets a copy of the block that
//!    is only partly full ([`StepPlan::copies`]), and computes the last token itself. If the parent is gone or
//!    preempted, the fork is treated like any other request.
//!
//! # How it differs from vLLM's (0.33), and why
//!
//! | vLLM | here | because |
//! |---|---|---|
//! | block 0 is a null block, ids start at 1 | no null block, ids start at 0 | kernels bound their reads by lengths |
//! | blocks enter the cache when they are allocated | when their tokens are committed, in `apply` | a failed step, a rejected draft or an abort can't leave a lie in the cache. Equal prompts of one step do not hit each other |
//! | drafts of the first running requests can use up the budget | a row takes only what leaves a token for everyone behind it | nobody's next token waits for another's drafts |
//! | drafts can preempt | a draft takes a block only if the rows behind could still take all that theirs lack | speculation must never cost a request its KV |
//! | lookahead slots of a draft model are reserved for prefills too | for decode rows alone | they would be unused |
//! | a request that preempts itself ends the step's running part | the others still get their turn | the blocks it gave back may serve them |
//! | a resumed request with one token left is padded to 1 + k rows | it is a decode row without drafts | graphs round shapes up themselves |
//! | asynchronous: lengths are optimistic, corrected a step late | lengths are exact | the plan is what ran |
//! | chunked prefill off: the budget must reach `max_model_len` | only each prompt must fit the budget; a request that grew past it and was preempted is cut | small budgets stay usable, and no resumed request can wait for ever |
//! | `prefill_chunk` (`long_prefill_token_threshold`) is ignored for a request that is alone | it always holds | one request gives the same plan in any company |
//! | the pool must hold `max_model_len` tokens, checked at start | each prompt must fit it; a request that outgrows it ends with `Length` | small pools stay usable, without livelock |
//! | `n > 1` samples are requests that find the prompt in the cache | forks share it down to the last token | no prompt token but one is computed twice, with the cache off too |
//! | `finished` is told on empty steps too | by the next plan that has rows | an empty plan need not be executed |
//! | watermark, KV connectors, encoder budgets, LoRA limits, pausing | none | not needed yet |
//!
//! These rules are the same: running requests go before waiting ones; prefill and decode share one budget; no request
//! is admitted in a step that preempted one; a preempted request goes to the front of the queue; a prefix hit has whole
//! blocks and ends before the last token; freed blocks that were not published go to the front of the free list and
//! published ones to its end, both tail first; equal blocks are not merged; blocks of rejected drafts are kept; and
//! stop tokens are checked before lengths.
//!
//! The budget may be smaller than `max_num_seqs`: since every row takes at least one token, no more requests are
//! admitted than the budget serves. Without a [`DraftControl`], the drafts of the first rows may cut a prefill behind
//! them down to that one token. With a control, drafts only take what the prefills leave.
//!
//! # What it costs
//!
//! `step` takes O(rows) and `apply` O(rows + tokens). Neither allocates heap memory while all running requests decode.
//! Together they take 30 to 80 ns for each running request (if the caches hold it), and 0.5 µs more for each block that
//! is sealed (`cargo bench -p pagedraft-scheduler`). Abort and preemption walk the queues, and a submission under
//! priority order walks the waiting requests.
//!
//! # Draft lengths
//!
//! With [`Scheduler::set_draft_control`], a [`DraftControl`] chooses the number of drafts of every row in every step.
//! It takes the number that gives the most expected tokens in the expected time, and 0 where drafts do not pay. It
//! starts from the costs of a step ([`StepCosts`]), learns the acceptance in `apply`, and corrects the costs by
//! measured times ([`Scheduler::observe`]). The limits on drafts above still hold, and drafts leave to prefills what
//! they would take without drafts.
//!
//! It aims at 0.98 of the throughput of the best fixed length from 0 to 8, and does not reach that everywhere. The
//! table shows its throughput in simulated time as a share of the best fixed length's (`tests/plans/never_worse.rs`: three
//! machines, four proposers, batches of 1 to 64, acceptance 0.1 to 0.9; 420 cells and three seeds, so 1,260 runs a
//! line):
//!
//! | runs | seeds | least | median | short of the aim |
//! |---|---|---|---|---|
//! | after 300 tokens a request, exact calibration | 4 to 6, fresh | 0.916 | 0.999 | 12 below 0.98 |
//! | the same | 1 to 3, tuned on | 0.972 | 0.999 | 5 below 0.98 |
//! | the same, each calibrated point off by up to 10 % | 1 to 3 | 0.887 | 0.998 | 101 below 0.98 |
//! | from cold, eight requests of 128 tokens a seat | 4 to 6, fresh | 0.942 | 0.995 | 1 below 0.95 |
//! | the same | 1 to 3, tuned on | 0.928 | 0.994 | 1 below 0.95 |
//! | from cold, the first request of each seat alone | 1 to 3 | 0.892 | 0.979 | 76 below 0.95 |
//!
//! The cells that fall short lie where drafts barely pay, or barely do not, and waking the proposer is dear. Sizes that
//! are never run keep their calibrated ratio to the sizes that are. While drafts are off for all requests, one good
//! request among many bad ones may not be found.
//!
//! While drafts are on, a decision adds 13 µs to the median step at 256 requests and 44 µs at 1,000. While drafts do
//! not pay, one decision holds for up to eight steps. The next table shows how many microseconds a control adds to a
//! whole step (planning, `apply` and `observe`). The figures are medians with cold caches, as behind a model's forward,
//! and in parentheses with warm caches:
//!
//! | running | none pays | drafts are on |
//! |---|---|---|
//! | 1 | 1.3 (0.1) | not measured |
//! | 4 | 1.5 (0.1) | 4.4 (1.2) |
//! | 16 | 2.1 (0.4) | 7.5 (3.7) |
//!
//! (`cargo bench -p pagedraft-scheduler --bench draft_lengths`, on a shared machine of two cores).
//!
//! # Example
//!
//! ```
//! use pagedraft_scheduler::fake::FakeExecutor;
//! use pagedraft_scheduler::{
//!     Executor, FinishReason, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut scheduler = Scheduler::new(SchedulerConfig { num_blocks: 64, ..SchedulerConfig::default() })?;
//! let request = scheduler.submit(RequestSpec::new(vec![1, 2, 3], 5))?;
//!
//! let mut executor = FakeExecutor::new();
//! let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
//! let mut tokens = 0;
//! while scheduler.has_unfinished() {
//!     scheduler.step(&mut plan)?;
//!     executor.execute(&plan, &scheduler, &mut outcome)?;
//!     scheduler.apply(&outcome, &mut applied)?;
//!     for one in &applied {
//!         assert_eq!(one.request, request);
//!         tokens += one.tokens.len();
//!     }
//! }
//! assert_eq!((tokens, applied[0].finish), (5, Some(FinishReason::Length)));
//! # Ok(())
//! # }
//! ```

mod admission;
mod apply;
mod config;
mod costs;
mod drafting;
mod error;
pub mod fake;
mod piece;
mod plan;
mod queues;
mod request;
mod restore;
mod role;
mod scheduler;
mod segments;
mod shares;
mod slot_counts;
mod step;
mod usual;

pub use apply::Applied;
pub use config::{Policy, SchedulerConfig, SegmentKv};
pub use costs::{CostCurve, StepCosts, StepTimes};
pub use drafting::{DraftControl, DraftReport};
pub use error::{ConfigError, Error, SubmitError};
pub use plan::{
    Executor, FinishReason, Kept, Kind, KvView, PlanRow, Progress, RowOutcome, StepId, StepOutcome, StepPlan,
};
pub use request::{Canvas, Phase, RequestInfo, RequestKey, RequestSpec, SharesKept};
pub use scheduler::{Scheduler, Stats};
pub use slot_counts::SlotCounts;
