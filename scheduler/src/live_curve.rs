use crate::CostCurve;

/// Rows up to which the line that a size lies on is looked up; beyond it is searched for.
const SPAN: usize = 2048;
/// Observations between two rewritings of the lines.
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
    /// What all sizes are multiplied by.
    scale: f64,
    us_per_context: f64,
    us_per_read: f64,
    observed: u32,
    /// From 0 to the first row, from there to the first point, and one from each point on.
    lines: Vec<Line>,
    /// The line of a size, by its whole rows.
    line_at: Vec<u16>,
}

/// Microseconds from a size on, scale and corrections in them.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    rows: f64,
    us: f64,
    slope: f64,
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
        let valid = |us: f64| if us.is_finite() { us.max(0.0) } else { 0.0 };
        let (us_per_context, us_per_read) = (valid(curve.us_per_context), valid(curve.us_per_read));
        // No engine is calibrated at so many sizes.
        points.truncate(usize::from(u16::MAX) - 2);
        let mut lines = vec![Line::default(), Line { rows: 1.0, ..Line::default() }];
        lines.extend(points.iter().map(|point| Line { rows: point.0, ..Line::default() }));
        let last = lines.partition_point(|line| line.rows <= SPAN as f64);
        let mut line_at = Vec::with_capacity(SPAN);
        for (at, line) in lines[..last].iter().enumerate().skip(1) {
            line_at.resize(line.rows as usize, (at - 1) as u16);
        }
        line_at.resize(SPAN, (last - 1) as u16);
        let mut live = Self { points, scale: 1.0, us_per_context, us_per_read, observed: 0, lines, line_at };
        live.rewrite();
        live
    }

    /// Microseconds of a forward of `rows`, which may be an expected number. 0 at none.
    #[inline]
    pub(crate) fn us(&self, rows: f64) -> f64 {
        let at = match self.line_at.get(rows as usize) {
            Some(&at) => usize::from(at),
            None => self.lines.partition_point(|line| line.rows <= rows) - 1,
        };
        let line = self.lines[at];
        line.us + line.slope * (rows - line.rows)
    }

    /// Microseconds of a (query token, context token) pair.
    pub(crate) fn us_per_context(&self) -> f64 {
        self.us_per_context * self.scale
    }

    /// Microseconds of a token of context that a sequence reads.
    pub(crate) fn us_per_read(&self) -> f64 {
        self.us_per_read * self.scale
    }

    /// Microseconds of each further row of a large forward.
    pub(crate) fn tail(&self) -> f64 {
        self.lines.last().map_or(0.0, |line| line.slope)
    }

    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// Whether it has a point, so that anything costs.
    pub(crate) fn has_points(&self) -> bool {
        self.lines.len() > 2
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
        let error = ln_near_1(us / predicted).clamp(-clamp, clamp);
        self.observed = self.observed.saturating_add(1);
        let moves = RATE.max(0.5 / f64::from(self.observed)) * error;
        self.scale = (self.scale * (2.0 + moves) / (2.0 - moves)).clamp(1e-9, 1e9);
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
        let mut least = 0.0f64;
        for (line, point) in self.lines[2..].iter_mut().zip(&self.points) {
            least = least.max(point.1 * self.scale * point.2.exp());
            line.us = least;
        }
        let Some(first) = self.lines.get(2).map(|line| line.us) else {
            return;
        };
        self.lines[0].slope = first;
        self.lines[1].us = first;
        let mut slope = 0.0;
        for at in 2..self.lines.len() {
            if let Some(next) = self.lines.get(at + 1) {
                slope = (next.us - self.lines[at].us) / (next.rows - self.lines[at].rows);
            }
            // Beyond the last point it goes on as before it.
            self.lines[at].slope = slope;
        }
    }
}

/// A logarithm good to a thousandth within a fifth of 1, without tables that a cold cache would have to fetch.
fn ln_near_1(x: f64) -> f64 {
    2.0 * (x - 1.0) / (x + 1.0)
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
