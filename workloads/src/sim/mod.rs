//! Virtual time: the engine's own scheduler and block manager, with steps that take as long as a cost model
//! says, and without sleeping.
//!
//! [`simulate`] runs a workload through one engine or several ([`Router`]), as a live replay would. Time is
//! in whole nanoseconds and jumps from event to event. If events coincide, steps end first, then requests
//! are sent, then steps begin (engines in the order of their numbers, requests in the workload's order).
//!
//! # What is as in a live engine
//!
//! - **The decisions**: plans, blocks, prefix hits, preemptions and automatic draft lengths are made by the real
//!   `Scheduler`, which is told the times of the cost model. A request that comes while a step runs is planned for in the
//!   next step. An idle engine begins when one comes, or when it has woken (`us_to_wake`). The tokens of a step are there
//!   at its end.
//! - **The client**: an open loop that sends on time. With a limit of concurrency a request waits for a seat from its
//!   intended arrival on; one without an arrival of its own is meant to be sent as a seat frees.
//! - **Windows**: where the scheduler is given the model's KV groups, a windowed one frees its blocks behind the window, and what a step
//!   reads of it is what the window shows.
//! - **Pruned prompts**: rows run through the segments of a model that is cut, and tokens that a cut drops are neither computed nor kept
//!   behind it. How many stay is exact ([`PromptRule`]); a step costs the share of each segment for the rows of that segment.
//! - **Proposing**: passes, lagging rows and the catch-up budget of a draft model.
//! - **Traces**: lines of the same form, from the same plans and block tables, which `pagedraft trace check` takes.
//!
//! # What is different
//!
//! - **Tokens say nothing.** They are drawn by (seed, request, position). So are the drafts that are accepted: by the cost
//!   model's shares, each independently of all others.
//! - A request is sent when it comes. A live engine takes it between two steps, and calls that sent.
//! - **No token of a prompt has a score.** Which ones a cut keeps is decided without a model, and a trace has no `prune` events.
//! - **No request stops by itself**: all give `max_tokens` tokens, even those that would run until a stop token.
//! - A conversation's later turns hit what its dataset says of the earlier ones, not what was generated here.
//! - A draft model's own pool always has room, and its prefix cache has what the target's cache had at a request's
//!   admission. It has no blocks, so a trace has no `draft` group.
//!
//! # What it costs
//!
//! A request of 568 prompt and 275 output tokens takes 36 to 37 µs of a core, with 256 requests running
//! (about 130 ns per request and step, a third of which is for block hashes and their cache). That is 1.63
//! to 1.67 million requests a minute on a core of its own, without a step trace
//! (`cargo bench -p pagedraft-workloads --bench simulate`). Memory is that of the pools and of what is in
//! flight.
//!
//! # Example
//!
//! ```
//! use pagedraft_workloads::measures::{Recorder, RecorderOptions};
//! use pagedraft_workloads::replay::{Incoming, PlannedRequest, RequestLine};
//! use pagedraft_workloads::sim::{CostModel, Observer, Router, SimOptions, simulate};
//! # use pagedraft_workloads::Error;
//!
//! struct Print;
//! impl Observer for Print {
//!     fn line(&mut self, line: &RequestLine) -> Result<(), Error> {
//!         println!("{}: {:?} ms to the first token", line.request_id, line.ttft_ms);
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = SimOptions {
//!     scheduler: Default::default(),
//!     cost: CostModel::from_json(r#"{"name": "5 ms a step", "target": {"points": [[1, 5000]]}}"#)?,
//!     speculation: None,
//!     prune: None,
//!     enforce_eager: false,
//!     replicas: 1,
//!     router: Router::RoundRobin,
//!     max_concurrency: None,
//!     seed: 0,
//! };
//! let request = |index| PlannedRequest {
//!     index,
//!     source_id: None,
//!     category: None,
//!     arrival_ns: Some(index * 1_000_000),
//!     prompt: vec![1, 2, 3],
//!     text: None,
//!     max_tokens: 4,
//!     until_stop: false,
//!     expect: None,
//! };
//! let mut source = (0..2).map(|index| Ok(Incoming::Request(request(index))));
//! let mut recorder = Recorder::new(RecorderOptions { items: 2, block_size: 16, ..Default::default() });
//! let report = simulate(&mut source, &options, &mut recorder, &mut Print)?;
//! // Steps end at 5, 10, 15, 20 and 25 ms: the second request came while the first step ran.
//! assert_eq!(report.end_ns, 25_000_000);
//! assert_eq!(recorder.summary().latencies.ttft.max, Some(9.0));
//! # Ok(())
//! # }
//! ```

mod client;
mod cost_file;
mod cost_fit;
mod cost_model;
mod drafting;
mod draws;
mod engine;
mod event_log;
mod freezes;
mod graphs;
mod in_flight;
mod least_squares;
mod observer;
mod options;
mod pruning;
mod router;
mod row_sums;
mod simulation;
mod step_trace;

pub use cost_fit::{CostFit, FitQuality, MeasuredStep, fit};
pub use cost_model::{Acceptance, CostModel, DraftCost, Freeze, Overhead, SegmentShape, StepCost, StepShape};
pub use graphs::GraphShape;
pub use observer::{Observer, SimEvent, SimGroups};
pub use options::{SimOptions, SimSpeculation};
pub use pruning::PromptRule;
pub use router::{Routed, Router, Routing, RoutingOptions};
pub use simulation::{SimReport, simulate};
