//! How long a device was at work, measured by the device's own clock.

use std::time::Duration;

use serde::Serialize;

/// The part of a step that a device is at work on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The step's inputs are copied to the device: tokens, positions, metadata, and the list of rows whose logits are
    /// wanted.
    #[default]
    Inputs,
    /// The operations run, those for logits included, after the copies of KV blocks that the plan asks for.
    Forward,
    /// Tokens are chosen and copied to the host. Logits or hidden states that the host reads count here too.
    Choice,
}

/// The time spent in each [`Stage`].
///
/// The device takes it with time marks before and after all that is issued at once. A replayed graph is one such piece
/// of work, and so is the list of operations of an eager step, which includes the gaps in which the device waited for
/// the next launch. The time between two pieces is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceTimes {
    /// The time in [`Stage::Inputs`].
    pub inputs: Duration,
    /// The time in [`Stage::Forward`].
    pub forward: Duration,
    /// The time in [`Stage::Choice`].
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

    /// Adds the times of another device, or of a later step.
    pub fn merge(&mut self, other: &Self) {
        self.inputs += other.inputs;
        self.forward += other.forward;
        self.choice += other.choice;
    }

    /// The time spent in all stages together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.inputs + self.forward + self.choice
    }
}
