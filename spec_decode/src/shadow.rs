//! The canary of a run, with what it needs to compare a replayed step with an eager one.

use pagedraft_scheduler::StepOutcome;

use crate::canary::{Canary, CanaryReport, ShadowRow};
use crate::record::ExecutionRecord;

/// Runs a replayed step again when the canary asks for it, and shows the canary both results. Replayed steps are
/// numbered from 0.
pub struct Shadow {
    pub(crate) canary: Canary,
    /// Whether an alarm makes the step fail.
    pub(crate) raise: bool,
    /// The number of steps replayed so far.
    pub(crate) replayed: u64,
    pub(crate) logits: Vec<f32>,
    pub(crate) rows: Vec<ShadowRow>,
    pub(crate) outcome: StepOutcome<ExecutionRecord>,
}

impl Shadow {
    /// A shadow for `canary`. With `raise`, an alarm makes the step fail.
    #[must_use]
    pub fn new(canary: Canary, raise: bool) -> Self {
        Self {
            canary,
            raise,
            replayed: 0,
            logits: Vec::new(),
            rows: Vec::new(),
            outcome: StepOutcome::default(),
        }
    }

    /// What the canary saw so far.
    #[must_use]
    pub fn report(&self) -> &CanaryReport {
        self.canary.report()
    }
}
