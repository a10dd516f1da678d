//! Workloads for an inference engine, and what is computed from them: datasets and arrivals, replays live
//! and simulated, their measures, and traces with their checker. The crate knows no model, no tokenizer,
//! and no engine other than the scheduler's.
//!
//! # Its modules
//!
//! | module | what is in it | what it promises | what it does not promise |
//! |---|---|---|---|
//! | [`dataset`] | production traces and datasets as they are published | one record in memory; what can't be read is an error with file and line; lengths and order are the file's | the papers' prompts, but for LongBench v2's |
//! | [`arrivals`] | when requests are sent | the same times for the same seed; the rate asked is the rate made | independent draws: gaps are scaled to the rate asked |
//! | [`prompt`] | token ids for traces without text | prefixes that a trace says are shared are shared | words: they are random ids |
//! | [`tasks`] | RULER's tasks made, answers scored | prompts of the length asked; all from a seed | RULER's own essays and word lists, byte for byte |
//! | [`replay`] | samples made into requests, and what passes between a replay and an engine | a prompt is run whole or skipped with a reason | the rate asked where text turns out not to fit ([`replay::Source`]) |
//! | [`measures`] | latencies, throughput, KV use, speculation, goodput | latencies count from the intended arrival, so that a stalled server shows; memory is bounded by what is in flight | what was counted by step before a run was resumed |
//! | [`sim`] | the real scheduler in virtual time, priced by a cost model | the same bytes for the same options | times better than the cost model's |
//! | [`run`] | run directories, and files of lines | whole lines; a stopped run can be gone on with | lines that were not flushed when a process was killed |
//! | [`trace`] | the steps of an engine on record, their schema and checker | see below | |
//! | [`latency`] | figures of a latency benchmark | numpy's percentiles | |
//!
//! # What traces promise
//!
//! - **What is logged is what ran.** [`trace::StepEvent`] borrows the very plan, metadata and outcome objects of a step
//!   and serialises those. There is no second set of structs on the writing side.
//! - **A trace is whole lines.** [`trace::TraceWriter`] writes nothing else, so a killed process leaves a readable file
//!   up to its last flush (every 100 ms or 64 KiB). A fault of the disk is an error of the next step, never a panic.
//! - **A trace can be refuted.** [`trace::check_dir`] re-derives every slot from block tables and positions, and names
//!   the first record that breaks a [`trace::Rule`].
//!
//! They do not promise that a traced run is as fast as an untraced one. For a step of 8 sequences the
//! engine's thread serialises about 3 KB, which takes some ten microseconds. Another thread writes them.
//!
//! # Percentiles
//!
//! All percentiles are numpy's ([`latency::percentile`]): linear interpolation between the two values
//! around the rank, as in `vllm bench`. In [`measures`], and so in `summary.json`, they are exact up to
//! 32,768 values. With more values they come from a histogram of three digits, so that memory is bounded,
//! and are at most 0.1 % too high. Means, deviations and maxima are exact.
//!
//! ```
//! use pagedraft_workloads::latency::Spread;
//! let spread = Spread::of(&[1.0, 2.0, 3.0, 4.0]).ok_or("no values")?;
//! assert_eq!(spread.percentile(50.0), 2.5);
//! # Ok::<(), &'static str>(())
//! ```
#![deny(missing_docs)]

pub mod arrivals;
pub mod dataset;
mod error;
pub mod json_fault;
pub mod latency;
pub mod measures;
mod path_text;
pub mod prompt;
pub mod replay;
pub mod run;
pub mod sim;
pub mod tasks;
mod text_tokens;
pub mod trace;

pub use error::Error;
