use std::collections::BTreeMap;

use pagedraft_attention::metadata::AttentionMetadata;

use super::GraphShape;
use crate::Error;
use crate::replay::{RequestLine, StepReport};
use crate::trace::{StepEvent, TargetRows};

/// The KV groups of a simulated target by name, where it has several: a step's metadata in each that a row ran in.
pub type SimGroups<'a> = BTreeMap<&'a str, TargetRows<'a>>;

/// A step of a simulated engine, as it goes on record: no KV groups but the target's. A live engine whose draft model keeps KV
/// writes a group `draft` with that model's own rows, slots and block tables. A simulation counts such a model's tokens and
/// passes, but has no blocks of it: a group would be made up.
pub type SimEvent<'a> = StepEvent<'a, AttentionMetadata, SimGroups<'a>, GraphShape>;

/// Observes a simulation.
pub trait Observer {
    /// A request is finished, skipped or failed.
    ///
    /// # Errors
    ///
    /// An error ends the simulation.
    fn line(&mut self, line: &RequestLine) -> Result<(), Error>;

    /// A step was made.
    ///
    /// # Errors
    ///
    /// An error ends the simulation.
    fn step(&mut self, _report: &StepReport) -> Result<(), Error> {
        Ok(())
    }

    /// Whether [`trace`](Self::trace) is to be called. This is asked once, before the first step. Tracing
    /// makes a simulation several times slower.
    fn wants_trace(&self) -> bool {
        false
    }

    /// Engine `replica` made a step. (The event has its number as well, if there are several engines.) The
    /// event holds what a live engine's trace has of the step, with metadata built from the block tables
    /// that the step began with. Its tables are whole ([`TableDelta`](crate::trace::TableDelta) reduces
    /// them), and its steps count from 0; to go on with an older trace, set `first_step`.
    ///
    /// # Errors
    ///
    /// An error ends the simulation.
    fn trace(&mut self, _replica: u32, _event: SimEvent<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Whether to stop here; asked before every step, and before every request that is sent.
    fn stop(&mut self) -> bool {
        false
    }
}
