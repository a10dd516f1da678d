use super::live_curve::LiveCurve;
use crate::{StepCosts, StepTimes};

/// A fixed cost moves by this share of its distance to each new measurement.
const FOLLOW_RATE: f64 = 0.05;

/// What the parts of a step cost: calibrated when the engine starts, and corrected by every measured step.
#[derive(Clone, Debug)]
pub(crate) struct LiveCosts {
    /// A forward of the target and its sampling, by the token rows of the step.
    pub(crate) target: LiveCurve,
    /// One forward of the proposer, by the requests that draft at that depth.
    pub(crate) draft: LiveCurve,
    /// Microseconds that a step with drafts takes for proposing, whatever the number of requests.
    per_step_us: f64,
    /// Microseconds of a step outside the target and the proposer.
    pub(crate) overhead_us: f64,
}

/// The work of the most recently applied step, in the quantities that costs are stated in.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepWork {
    /// Token rows of the target's forward.
    pub(crate) rows: u32,
    /// Token rows that belong to prefills.
    pub(crate) prefill_rows: u32,
    /// (query token, context token) pairs.
    pub(crate) context: f64,
    /// Context tokens of all sequences, each counted once.
    pub(crate) read: f64,
    /// Requests that asked for drafts.
    pub(crate) asked: u32,
    /// Tokens that the proposer computed again because its KV lagged behind.
    pub(crate) caught_up: u32,
    /// At index d, the requests that were given more than d drafts.
    pub(crate) drafting: Vec<u32>,
}

impl LiveCosts {
    /// Numbers in `costs` that are negative or not finite count as 0.
    pub(crate) fn new(costs: &StepCosts) -> Self {
        let valid = |us: f64| if us.is_finite() { us.max(0.0) } else { 0.0 };
        Self {
            target: LiveCurve::new(&costs.target),
            draft: LiveCurve::new(&costs.draft),
            per_step_us: valid(costs.draft_per_step_us),
            overhead_us: valid(costs.overhead_us),
        }
    }

    /// Microseconds that a step with drafts takes for proposing, whatever the number of requests, on this machine now.
    pub(crate) fn per_step_us(&self) -> f64 {
        self.per_step_us * self.draft.scale()
    }

    /// Corrects the costs by the measured times of the step that did `work`. A step that was empty, or more
    /// than a quarter of it prefill, says too little about decoding and is passed over.
    pub(crate) fn observe(&mut self, work: &StepWork, times: &StepTimes) {
        let &StepWork { rows, prefill_rows, context, read, asked, caught_up, .. } = work;
        if rows == 0 || prefill_rows * 4 > rows {
            return;
        }
        let rows = f64::from(rows);
        let predicted =
            self.target.us(rows) + context * self.target.us_per_context() + read * self.target.us_per_read();
        self.target.observe(rows, predicted, times.execute_us);
        let first = if asked > 0 { work.drafting.first().copied().unwrap_or_default() } else { 0 };
        let has_model = self.draft.has_points();
        if asked > 0 && !has_model {
            follow(&mut self.per_step_us, times.propose_us);
        } else if first > 0 && caught_up <= 2 * first {
            let mut predicted = self.per_step_us() + self.draft.us(f64::from(first + caught_up));
            for &drafting in &work.drafting[1..] {
                predicted += self.draft.us(f64::from(drafting));
            }
            self.draft.observe(f64::from(first), predicted, times.propose_us);
        }
        follow(&mut self.overhead_us, times.total_us - times.execute_us - times.propose_us);
    }
}

/// Moves a fixed cost towards what was measured. An outlier counts as at most about twice the cost.
fn follow(us: &mut f64, measured: f64) {
    if measured.is_finite() {
        let most = us.mul_add(2.0, 10.0);
        *us += FOLLOW_RATE * (measured.clamp(0.0, most) - *us);
    }
}
