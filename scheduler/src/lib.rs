//! Queues, budget and policy: a pure step function.
//!
//! [`Scheduler::step`] writes a [`StepPlan`]: who runs how many tokens. Somebody ([`Executor`]) runs it, and
//! [`Scheduler::apply`] takes the [`StepOutcome`]. Submissions and aborts come in between. A plan is a function of the
//! state and these events alone: there is no model here, no device, tokenizer, clock, environment, lock or runtime (a
//! test reads the sources and fails when one appears), so that the live engine and a simulator drive the same code.
//!
//! # What it promises
//!
//! - While requests are unfinished every plan has rows, and everyone admitted gets its turn. The oldest running
//!   request (under [`Policy::Priority`] the best) never loses its blocks, so that something always finishes.
//! - A request that could never be served is refused by [`Scheduler::submit`]. One that outgrows the whole pool ends
//!   with [`FinishReason::Length`], at the same token whatever runs beside it.
//! - Every block is freed exactly once, whatever is aborted when. Blocks of a step in flight are given back by its
//!   `apply`.
//! - Tokens enter the prefix cache when they are accepted, in `apply`; drafts never do.
//!
//! # What it does not
//!
//! - One step is in flight at a time. [`Scheduler::step`] gives up a step that was not applied (an executor failed):
//!   its requests are preempted and computed again.
//! - It does not look for stop strings: who does marks [`RowOutcome::stop`].
//! - Admission does not reserve what a request may yet generate, so that running requests can be preempted; preemption
//!   is by recompute (there is no swap).
//!
//! # The rules of a step
//!
//! 1. Running requests, in the order of admission. A prefill row takes what is missing, cut to `prefill_chunk` and the
//!    budget; a decode row its last token and up to `num_speculative_tokens` drafts. Each leaves a token of the budget
//!    for every row behind it, so that everyone who runs has a row in every step. When the pool has no block for it,
//!    the newest running request (worst under priority) is preempted, and again, until it has. With a
//!    [`DraftControl`] the number of drafts is its choice for the row, and never more.
//! 2. If nobody was preempted: waiting requests, in order, while budget, seats and blocks last. A request is admitted
//!    when its whole known sequence fits the free blocks, hits counted. The first that does not fit ends the step.
//! 3. A fork ([`RequestSpec::fork_of`]) waits until its parent has the KV of all but the prompt's last token, and
//!    others go first meanwhile. Then it shares the parent's full blocks, gets a copy of the one that is cut
//!    ([`StepPlan::copies`]), and computes that last token itself. If the parent is gone or preempted it is a request
//!    like any other.
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
//! The same: running before waiting, one budget for prefill and decode, nobody admitted in a step that preempted,
//! preempted requests to the front of the queue, hits of whole blocks up to the last token but one, the order of free
//! blocks (unpublished ones back to the front, tail first; published ones to the end, tail first), duplicates not
//! merged, blocks of rejected drafts kept, stop tokens before lengths.
//!
//! The budget may be smaller than `max_num_seqs`: every row takes a token at least, so no more requests are admitted
//! than the budget serves. Without a [`DraftControl`] the drafts of the first rows may cut a prefill behind them to
//! that one token; with one, drafts take what prefills leave.
//!
//! # What it costs
//!
//! `step` is O(rows), `apply` O(rows + tokens), both without heap allocation while all running requests decode. Both
//! together are 30 to 80 ns a running request (caches permitting), and 0.5 µs more for each block that is sealed
//! (`cargo bench -p pagedraft-scheduler`). Abort and preemption walk the
//! queues; a submission under priority order walks the waiting ones.
//!
//! # Draft lengths
//!
//! [`Scheduler::set_draft_control`] lets a [`DraftControl`] choose the number of drafts of every row in every step: the
//! one that gives the most expected tokens in the expected time, 0 where drafts do not pay. It starts from what a step
//! costs ([`StepCosts`]), learns acceptance in `apply` and corrects the costs by measured times
//! ([`Scheduler::observe`]). Drafts stay bounded as above, and leave to prefills what they would take without.
//!
//! It aims at 0.98 of the best fixed length 0 to 8 and does not reach it everywhere. In simulated time
//! (`tests/never_worse.rs`: three machines, four proposers, batches of 1 to 64, acceptance 0.1 to 0.9; 420 cells and
//! three seeds, 1,260 runs a line), of the best fixed length:
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
//! The cells that fall short lie where drafts barely pay or barely do not and waking the proposer is dear. Sizes that
//! are never run keep their calibrated ratio to those that are. One good request among many bad ones may not be found
//! while drafts are off for all.
//!
//! While drafts are on, a decision adds 13 µs to the median step at 256 requests, 44 µs at 1,000. While none pays it
//! holds for up to eight steps. In the microseconds of a whole step (planning, `apply`, `observe`; medians, caches cold
//! as behind a model's forward and, in parentheses, warm) a control adds
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
mod scheduler;
mod segments;
mod slot_counts;
mod step;

pub use apply::Applied;
pub use config::{Policy, SchedulerConfig, SegmentKv};
pub use costs::{CostCurve, StepCosts, StepTimes};
pub use drafting::{DraftControl, DraftReport};
pub use error::{ConfigError, Error, SubmitError};
pub use plan::{
    Executor, FinishReason, Kept, Kind, KvView, PlanRow, Progress, RowOutcome, StepId, StepOutcome, StepPlan,
};
pub use request::{Canvas, Phase, RequestInfo, RequestKey, RequestSpec};
pub use scheduler::{Scheduler, Stats};
pub use slot_counts::SlotCounts;
