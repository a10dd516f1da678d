use crate::CostCurve;

/// Up to this many rows the line that a size lies on is found in a table. Beyond, it is found by binary search.
const SPAN: usize = 2048;
/// The lines are rewritten once in this many observations.
const REWRITE: u32 = 16;
/// An observation counts as at most this far from the prediction, as a natural logarithm, so that outliers move little.
const CLAMP: f64 = 0.2;
/// An observation moves the scale of all sizes by at least this share of its distance to the prediction.
const RATE: f64 = 0.04;
/// An observation moves the correction of its own size by this share of its distance to the prediction.
const LOCAL_RATE: f64 = 0.012;
/// A size may be corrected by at most this much apart from the others, as a natural logarithm.
const LOCAL_MAX: f64 = 0.25;

/// A [`CostCurve`] that follows what is measured.
///
/// An observation moves the scale of the whole curve and, more slowly, the two calibrated points beside its size. A
/// size that is never run keeps its calibrated ratio to those that are.
#[derive(Clone, Debug)]
pub(crate) struct LiveCurve {
    /// The calibrated points in ascending order of rows. Their microseconds never fall.
    points: Vec<Point>,
    /// The factor that the microseconds of all sizes are multiplied by.
    scale: f64,
    us_per_context: f64,
    us_per_read: f64,
    /// The number of observations.
    observed: u32,
    /// One line from 0 rows to 1, one from there to the first point, and one from each point on.
    lines: Vec<Line>,
    /// The index of the line that a size lies on, by the size's rows, rounded down.
    line_at: Vec<u16>,
}

/// A calibrated size.
#[derive(Clone, Copy, Debug)]
struct Point {
    rows: f64,
    us: f64,
    /// The natural logarithm of the factor by which this point differs from the common scale.
    correction: f64,
}

/// A straight piece of the curve that begins at `rows`, after the scale and the corrections.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    rows: f64,
    us: f64,
    slope: f64,
}

impl LiveCurve {
    pub(crate) fn new(curve: &CostCurve) -> Self {
        let mut points: Vec<Point> = (curve.points.iter())
            .filter(|(_, us)| us.is_finite() && *us >= 0.0)
            .map(|&(rows, us)| Point { rows: f64::from(rows.max(1)), us, correction: 0.0 })
            .collect();
        points.sort_by(|a, b| a.rows.total_cmp(&b.rows));
        points.dedup_by(|b, a| a.rows == b.rows);
        level_falls(&mut points);
        let valid = |us: f64| if us.is_finite() { us.max(0.0) } else { 0.0 };
        let (us_per_context, us_per_read) = (valid(curve.us_per_context), valid(curve.us_per_read));
        // Lines are indexed by `u16`, so at most 65,533 points are kept; calibration measures a few dozen.
        points.truncate(usize::from(u16::MAX) - 2);
        let mut lines = vec![Line::default(), Line { rows: 1.0, ..Line::default() }];
        lines.extend(points.iter().map(|point| Line { rows: point.rows, ..Line::default() }));
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

    /// Microseconds of a forward of `rows` rows. This may be an expected number of rows, and 0 rows take 0.
    #[inline]
    pub(crate) fn us(&self, rows: f64) -> f64 {
        let at = match self.line_at.get(rows as usize) {
            Some(&at) => usize::from(at),
            None => self.lines.partition_point(|line| line.rows <= rows) - 1,
        };
        let line = self.lines[at];
        line.us + line.slope * (rows - line.rows)
    }

    /// Microseconds of one (query token, context token) pair.
    pub(crate) fn us_per_context(&self) -> f64 {
        self.us_per_context * self.scale
    }

    /// Microseconds for a sequence to read one token of its context.
    pub(crate) fn us_per_read(&self) -> f64 {
        self.us_per_read * self.scale
    }

    /// Microseconds of each further row of a large forward.
    pub(crate) fn tail_us(&self) -> f64 {
        self.lines.last().map_or(0.0, |line| line.slope)
    }

    /// The curve now takes this many times its calibrated time.
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// Whether it has a calibrated point. Without one every size costs 0.
    pub(crate) fn has_points(&self) -> bool {
        self.lines.len() > 2
    }

    /// The calibrated sizes, in rows.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|point| point.rows)
    }

    /// Takes a measured time into account: `us` was measured where `predicted` was expected, at a size of `rows`.
    pub(crate) fn observe(&mut self, rows: f64, predicted: f64, us: f64) {
        if !(us.is_finite() && us > 0.0 && predicted > 0.0) {
            return;
        }
        // The first observations may show that the calibration was made on another machine, so they may move it far.
        let clamp = if self.observed < 8 { 1.0 } else { CLAMP };
        let error = ln_near_1(us / predicted).clamp(-clamp, clamp);
        self.observed = self.observed.saturating_add(1);
        let moves = RATE.max(0.5 / f64::from(self.observed)) * error;
        self.scale = (self.scale * (2.0 + moves) / (2.0 - moves)).clamp(1e-9, 1e9);
        let above = self.points.partition_point(|point| point.rows < rows);
        let weight = match (above.checked_sub(1).and_then(|at| self.points.get(at)), self.points.get(above)) {
            (Some(low), Some(high)) => (rows - low.rows) / (high.rows - low.rows),
            (None, _) => 1.0,
            (_, None) => 0.0,
        };
        let local = LOCAL_RATE * error.clamp(-CLAMP, CLAMP);
        for (at, share) in [(above.wrapping_sub(1), 1.0 - weight), (above, weight)] {
            if let Some(point) = self.points.get_mut(at) {
                point.correction = (point.correction + share * local).clamp(-LOCAL_MAX, LOCAL_MAX);
            }
        }
        if self.observed < 8 || self.observed.is_multiple_of(REWRITE) {
            self.rewrite();
        }
    }

    /// Computes the lines anew from the points, the scale and the corrections.
    fn rewrite(&mut self) {
        let mut least = 0.0f64;
        for (line, point) in self.lines[2..].iter_mut().zip(&self.points) {
            least = least.max(point.us * self.scale * point.correction.exp());
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
            // Beyond the last point the curve goes on with the slope before it.
            self.lines[at].slope = slope;
        }
    }
}

/// A natural logarithm. Its error is below 0.001 for `x` from 0.8 to 1.2, and it reads no table, which would have to be
/// fetched into a cold cache.
fn ln_near_1(x: f64) -> f64 {
    2.0 * (x - 1.0) / (x + 1.0)
}

/// Averages neighbours until no point takes less than the one before it ("pool adjacent violators").
fn level_falls(points: &mut [Point]) {
    for end in 1..points.len() {
        let mut start = end;
        // The points before `end` never fall. Average the shortest run up to `end` so that this holds for it too.
        let mut mean = points[end].us;
        while start > 0 && points[start - 1].us > mean {
            start -= 1;
            let run = &points[start..=end];
            mean = run.iter().map(|point| point.us).sum::<f64>() / run.len() as f64;
        }
        for point in &mut points[start..=end] {
            point.us = mean;
        }
    }
}
