use serde::{Deserialize, Serialize};

/// The time of one forward by its number of token rows: measured points with straight lines between them.
///
/// Below the first point, a forward costs what the first point does. Beyond the last point, the curve goes on with its
/// last slope. A [`DraftControl`](crate::DraftControl) first averages neighbouring points that fall, so that noise in
/// the measurement can't make more rows cheaper than fewer. A curve without points costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostCurve {
    /// Pairs of a number of token rows and the microseconds of a forward with that many, in any order.
    pub points: Vec<(u32, f64)>,
    /// The price of attention: microseconds that each pair of a query token and a token of its context adds.
    #[serde(default)]
    pub us_per_context: f64,
    /// The price of reading the KV cache: microseconds that each context token of a sequence adds, whatever the number
    /// of its query tokens.
    #[serde(default)]
    pub us_per_read: f64,
}

/// What the parts of a step cost on this machine. The engine measures it when it starts, and calibration saves it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepCosts {
    /// A forward of the target and its sampling, by the number of token rows in the step.
    pub target: CostCurve,
    /// One forward of the proposer, by the number of requests that draft at that depth. It has no points if the
    /// proposer has no model (n-gram look-up).
    #[serde(default)]
    pub draft: CostCurve,
    /// Microseconds that a step with drafts takes for proposing, whatever the number of requests.
    #[serde(default)]
    pub draft_per_step_us: f64,
    /// Microseconds that a step takes outside the target and the proposer: for metadata, bookkeeping and streaming.
    #[serde(default)]
    pub overhead_us: f64,
    /// Whether the proposer keeps KV of its own. It must then recompute the tokens of a request that it did not draft
    /// for.
    #[serde(default)]
    pub proposer_keeps_kv: bool,
}

/// The measured times of one step. They keep [`StepCosts`] true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    /// Microseconds of proposing drafts, catching up included. It is 0 in a step without drafts.
    pub propose_us: f64,
    /// Microseconds of the target's forward and of sampling.
    pub execute_us: f64,
    /// Microseconds of the whole step.
    pub total_us: f64,
}

impl CostCurve {
    /// Microseconds of a forward of `rows` rows without context. The points must be in ascending order; they are used
    /// as measured.
    #[must_use]
    pub fn us(&self, rows: u32) -> f64 {
        let at = self.points.partition_point(|&(r, _)| r < rows);
        let (Some(&first), Some(&last)) = (self.points.first(), self.points.last()) else { return 0.0 };
        let line = |(r0, us0): (u32, f64), (r1, us1): (u32, f64)| {
            us0 + (us1 - us0) * (f64::from(rows) - f64::from(r0)) / (f64::from(r1) - f64::from(r0))
        };
        match (at.checked_sub(1).and_then(|i| self.points.get(i)), self.points.get(at)) {
            (Some(&below), Some(&above)) => line(below, above),
            (None, _) => first.1,
            (Some(_), None) => match self.points.len().checked_sub(2).and_then(|i| self.points.get(i)) {
                Some(&before) if before.0 < last.0 => line(before, last),
                _ => last.1,
            },
        }
    }
}
