use serde::{Deserialize, Serialize};

/// What one forward costs, by its token rows: measured points, straight lines between them.
///
/// Below the first point the cost is the first point's, beyond the last it goes on with the last slope. Who prices
/// with a curve makes it non-decreasing first (neighbours that fall are averaged), so that noise in the measuring
/// can't make more rows cheaper than fewer. A curve without points costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostCurve {
    /// Token rows, and the microseconds of a forward of so many. In any order.
    pub points: Vec<(u32, f64)>,
    /// Microseconds for each (query token, token of its context) pair, on top: the price of attention.
    #[serde(default)]
    pub us_per_context: f64,
    /// Microseconds for each token of context of each sequence, on top, whatever its query tokens: to read it once.
    #[serde(default)]
    pub us_per_read: f64,
}

/// What the parts of a step cost on this machine: measured when an engine starts, and saved by calibration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepCosts {
    /// A forward of the target and its sampling, by all token rows of the step.
    pub target: CostCurve,
    /// One forward of the proposer, by the requests that draft at that depth. Without points for a proposer that has
    /// no model (n-gram look-up).
    #[serde(default)]
    pub draft: CostCurve,
    /// Microseconds of proposing at all, once a step that asks for drafts.
    #[serde(default)]
    pub draft_per_step_us: f64,
    /// Microseconds of a step besides: metadata, bookkeeping, streaming.
    #[serde(default)]
    pub overhead_us: f64,
    /// Whether the proposer keeps KV of its own, so that a request it did not draft for has to be caught up with.
    #[serde(default)]
    pub proposer_keeps_kv: bool,
}

/// What a step took: the event that keeps [`StepCosts`] true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepTimes {
    /// Microseconds of proposing drafts, catching up included; 0 in a step without.
    pub propose_us: f64,
    /// Microseconds of the target's forward and of sampling.
    pub execute_us: f64,
    /// Microseconds of the whole step.
    pub total_us: f64,
}

impl CostCurve {
    /// Microseconds of a forward of `rows` rows without context, from points in ascending order, as measured.
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
