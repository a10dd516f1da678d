//! What a run leaves behind and what is computed from it: traces, their checker, and latency figures.
//!
//! # What this crate promises
//!
//! - **What is logged is what ran.** [`trace::StepEvent`] borrows the very plan, metadata and outcome objects of a step
//!   and serialises those; there is no second set of structs on the writing side.
//! - **A trace is whole lines.** [`trace::TraceWriter`] writes nothing else, so that a killed process leaves a
//!   readable file up to its last flush (every 100 ms or 64 KiB). A fault of the disk is an error of the next step, never a panic.
//! - **A trace can be refuted.** [`trace::check_dir`] re-derives every slot from block tables and positions and names the
//!   first record that breaks a [`trace::Rule`].
//! - **Percentiles are numpy's** ([`latency::percentile`]), the ones `vllm bench latency` prints.
//!
//! What it does not promise: that a traced run is as fast as an untraced one. A step of 8 sequences costs the engine's
//! thread the serialisation of about 3 KB, some ten microseconds; the writing itself is another thread's.
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
pub mod latency;
pub mod measures;
pub mod prompt;
pub mod replay;
pub mod run;
pub mod sim;
pub mod tasks;
pub mod trace;

pub use error::Error;
