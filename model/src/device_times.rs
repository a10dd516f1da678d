//! How long a device was at work, by its own clock.

use std::time::Duration;

use serde::Serialize;

/// What of a step a device is at work on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Copying the step's inputs to it: tokens, positions, metadata, the rows that logits are wanted of.
    #[default]
    Inputs,
    /// The operations, logits included, and the copies of KV blocks before them.
    Forward,
    /// Choosing tokens, and copying what was chosen to the host; or the logits or states that somebody reads.
    Choice,
}

/// Time spent in each [`Stage`].
///
/// Taken by marks on the device around what is issued at once: a replayed graph is one such thing, and so is the list of an
/// eager step, which has the gaps in it where the device waited for the next launch. Between two such things nothing is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceTimes {
    /// [`Stage::Inputs`].
    pub inputs: Duration,
    /// [`Stage::Forward`].
    pub forward: Duration,
    /// [`Stage::Choice`].
    pub choice: Duration,
}

impl DeviceTimes {
    /// Adds time spent in a stage.
    pub fn add(&mut self, stage: Stage, time: Duration) {
        *match stage {
            Stage::Inputs => &mut self.inputs,
            Stage::Forward => &mut self.forward,
            Stage::Choice => &mut self.choice,
        } += time;
    }

    /// Adds what was spent elsewhere, or later.
    pub fn merge(&mut self, other: &Self) {
        self.inputs += other.inputs;
        self.forward += other.forward;
        self.choice += other.choice;
    }

    /// All stages together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.inputs + self.forward + self.choice
    }
}
