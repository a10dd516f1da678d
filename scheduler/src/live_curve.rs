use crate::CostCurve;

/// Rows up to which a forward's cost is looked up; beyond it is a line.
const SPAN: usize = 2048;
/// Observations between two rewritings of the look-up table.
const REWRITE: u32 = 16;
/// How far one observation may be from what was predicted, as a logarithm: outliers count as that much.
const CLAMP: f64 = 0.2;
/// What an observation moves the scale of all sizes, at least, and the correction of its own size.
const RATE: f64 = 0.04;
const LOCAL_RATE: f64 = 0.012;
/// How far a size may be corrected apart from the others, as a logarithm.
const LOCAL_MAX: f64 = 0.25;

/// A [`CostCurve`] that follows what is measured.
///
/// An observation moves the scale of the whole curve and, more slowly, the calibrated points beside it. Sizes that
/// are not visited keep their calibrated ratio to those that are.
#[derive(Clone, Debug)]
pub(crate) struct LiveCurve {
    /// Rows, microseconds (non-decreasing), logarithm of the point's own correction.
    points: Vec<(f64, f64, f64)>,
    log_scale: f64,
    us_per_context: f64,
    observed: u32,
    /// Microseconds at 0 ..= `SPAN` rows, scale and corrections in it.
    table: Vec<f64>,
    /// Microseconds of each row beyond.
    tail: f64,
}

impl LiveCurve {
    pub(crate) fn new(curve: &CostCurve) -> Self {
        let mut points: Vec<(f64, f64, f64)> = (curve.points.iter())
            .filter(|(_, us)| us.is_finite() && *us >= 0.0)
            .map(|&(rows, us)| (f64::from(rows.max(1)), us, 0.0))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by(|b, a| a.0 == b.0);
        level_falls(&mut points);
        let us_per_context =
            if curve.us_per_context.is_finite() { curve.us_per_context.max(0.0) } else { 0.0 };
        let mut live = Self {
            points,
            log_scale: 0.0,
            us_per_context,
            observed: 0,
            table: vec![0.0; SPAN + 1],
            tail: 0.0,
        };
        live.rewrite();
        live
    }

    /// Microseconds of a forward of `rows`, which may be an expected number. 0 at none.
    #[inline]
    pub(crate) fn us(&self, rows: f64) -> f64 {
        let whole = rows as usize;
        match self.table.get(whole..whole + 2) {
            Some(&[low, high]) => low + (high - low) * (rows - whole as f64),
            _ => self.table[SPAN] + self.tail * (rows - SPAN as f64),
        }
    }

    /// Microseconds of a (query token, context token) pair.
    pub(crate) fn us_per_context(&self) -> f64 {
        self.us_per_context * self.scale()
    }

    /// Microseconds of each further row of a large forward.
    pub(crate) fn tail(&self) -> f64 {
        self.tail
    }

    pub(crate) fn scale(&self) -> f64 {
        self.log_scale.exp()
    }

    /// The calibrated sizes.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|point| point.0)
    }

    /// Takes a measured time into account: `us` was measured where `predicted` was expected, at a size of `rows`.
    pub(crate) fn observe(&mut self, rows: f64, predicted: f64, us: f64) {
        if !(us.is_finite() && us > 0.0 && predicted > 0.0) {
            return;
        }
        // The first observations may say that this machine is another altogether.
        let clamp = if self.observed < 8 { 1.0 } else { CLAMP };
        let error = (us / predicted).ln().clamp(-clamp, clamp);
        self.observed = self.observed.saturating_add(1);
        self.log_scale += RATE.max(0.5 / f64::from(self.observed)) * error;
        let above = self.points.partition_point(|point| point.0 < rows);
        let weight = match (above.checked_sub(1).and_then(|at| self.points.get(at)), self.points.get(above)) {
            (Some(low), Some(high)) => (rows - low.0) / (high.0 - low.0),
            (None, _) => 1.0,
            (_, None) => 0.0,
        };
        let local = LOCAL_RATE * error.clamp(-CLAMP, CLAMP);
        for (at, share) in [(above.wrapping_sub(1), 1.0 - weight), (above, weight)] {
            if let Some(point) = self.points.get_mut(at) {
                point.2 = (point.2 + share * local).clamp(-LOCAL_MAX, LOCAL_MAX);
            }
        }
        if self.observed < 8 || self.observed.is_multiple_of(REWRITE) {
            self.rewrite();
        }
    }

    fn rewrite(&mut self) {
        let scale = self.scale();
        let corrected = |point: &(f64, f64, f64)| (point.0, point.1 * scale * point.2.exp());
        let [Some(first), Some(last)] = [self.points.first(), self.points.last()] else {
            return;
        };
        let (mut low, end) = (corrected(first), corrected(last));
        let mut high = low;
        let mut next = self.points.iter().map(corrected);
        let mut slope = 0.0;
        for (rows, us) in self.table.iter_mut().enumerate().skip(1) {
            let rows = rows as f64;
            while rows > high.0 {
                let Some(point) = next.next() else {
                    break;
                };
                (low, high) = (high, (point.0, point.1.max(high.1)));
                slope = if high.0 > low.0 { (high.1 - low.1) / (high.0 - low.0) } else { 0.0 };
            }
            *us = if rows >= low.0 { low.1 + slope * (rows - low.0) } else { low.1 };
        }
        self.table[0] = 0.0;
        let before = self.points.iter().rev().nth(1).map(corrected);
        self.tail = before.map_or(0.0, |before| ((end.1 - before.1) / (end.0 - before.0)).max(0.0));
        if end.0 > SPAN as f64 {
            // The table ends short of the points: the line goes from its end through the last.
            self.tail = ((end.1 - self.table[SPAN]) / (end.0 - SPAN as f64)).max(0.0);
        }
    }
}

/// Averages neighbours that fall until none does (pool adjacent violators).
fn level_falls(points: &mut [(f64, f64, f64)]) {
    for end in 1..points.len() {
        let mut start = end;
        // Everything before `end` is non-decreasing; average the shortest run that makes `..= end` so.
        let mut mean = points[end].1;
        while start > 0 && points[start - 1].1 > mean {
            start -= 1;
            let run = &points[start..=end];
            mean = run.iter().map(|point| point.1).sum::<f64>() / run.len() as f64;
        }
        for point in &mut points[start..=end] {
            point.1 = mean;
        }
    }
}
