//! Chooses how many draft tokens every decoding request gets in every step.
//!
//! [`DraftControl`] makes the choice. It asks [`acceptance`] how likely a request's drafts are to be accepted,
//! [`live_costs`] what a step takes on this machine, and [`search`] which lengths give the most expected tokens per
//! microsecond. While drafts do not pay for anyone, [`probing`] tries one now and then. [`lengths`] connects the
//! control to the scheduler's queues.

mod acceptance;
mod control;
mod lengths;
mod live_costs;
mod live_curve;
mod probing;
mod report;
mod search;
#[cfg(test)]
mod tests;

pub use control::DraftControl;
pub use report::DraftReport;
