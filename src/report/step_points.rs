//! Keeps what the charts show of the steps of a trace, in memory that does not grow with the trace.

use pagedraft_workloads::trace::{RowKind, StepRecord};

/// The most points that are kept. If a trace has more steps, a point is the sum of 2 of them, then of 4,
/// and so on. They take 1 MiB at most, and leave at least about 20 points for each column of a chart.
pub(super) const MOST_POINTS: usize = 1 << 14;

/// The sums over some consecutive steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepPoint {
    /// The number of the first step.
    pub(super) step: u64,
    /// The number of steps.
    pub(super) steps: u64,
    pub(super) prefill_tokens: u64,
    pub(super) decode_rows: u64,
    pub(super) draft_tokens: u64,
    pub(super) used: u64,
    pub(super) cached: u64,
}

impl StepPoint {
    fn of(record: &StepRecord) -> Self {
        let mut point = Self {
            step: record.step,
            steps: 1,
            used: record.pool.used,
            cached: record.pool.cached,
            ..Self::default()
        };
        for row in &record.rows {
            let own = u64::from(row.num_new.saturating_sub(row.num_drafts));
            match row.kind {
                RowKind::Prefill => point.prefill_tokens += own,
                _ => point.decode_rows += 1,
            }
        }
        point.draft_tokens = record.outcome.iter().map(|outcome| u64::from(outcome.num_drafts)).sum();
        point
    }

    /// The sums including the steps that follow.
    fn and(self, next: &Self) -> Self {
        Self {
            step: self.step,
            steps: self.steps + next.steps,
            prefill_tokens: self.prefill_tokens + next.prefill_tokens,
            decode_rows: self.decode_rows + next.decode_rows,
            draft_tokens: self.draft_tokens + next.draft_tokens,
            // The sum saturates, because a trace may claim any number of blocks.
            used: self.used.saturating_add(next.used),
            cached: self.cached.saturating_add(next.cached),
        }
    }
}

/// The steps that were read, in order.
#[derive(Clone, Debug)]
pub(super) struct StepPoints {
    points: Vec<StepPoint>,
    /// How many steps a point stands for. The last point may have fewer.
    steps_a_point: u64,
    /// The number of all steps.
    pub(super) steps: u64,
    /// The number of the last step.
    pub(super) last_step: Option<u64>,
    /// The most blocks that were in use in any step.
    pub(super) peak_used: u64,
    /// The number of blocks of the pool in the last step.
    pub(super) num_blocks: u64,
    /// Where several KV groups share the pool: most bytes that were in use in one of them, and those of the pool.
    pub(super) bytes: Option<(u64, u64)>,
}

impl StepPoints {
    /// No steps yet.
    pub(super) fn new() -> Self {
        Self {
            points: Vec::new(),
            steps_a_point: 1,
            steps: 0,
            last_step: None,
            peak_used: 0,
            num_blocks: 0,
            bytes: None,
        }
    }

    /// Adds the next step.
    pub(super) fn push(&mut self, record: &StepRecord) {
        self.add(StepPoint::of(record));
        self.peak_used = self.peak_used.max(record.pool.used);
        self.num_blocks = record.pool.num_blocks;
        if let (Some(used), Some(total)) = (record.pool.bytes_used, record.pool.bytes_total) {
            self.bytes = Some((self.bytes.map_or(used, |(peak, _)| peak.max(used)), total));
        }
    }

    fn add(&mut self, point: StepPoint) {
        self.steps += 1;
        self.last_step = Some(point.step);
        if let Some(open) = self.points.last_mut().filter(|last| last.steps < self.steps_a_point) {
            *open = open.and(&point);
            return;
        }
        if self.points.len() == MOST_POINTS {
            self.points = self.points.chunks_exact(2).map(|pair| pair[0].and(&pair[1])).collect();
            self.steps_a_point *= 2;
        }
        self.points.push(point);
    }

    /// At most `most` groups of consecutive points, and the number of steps in each of them but the last.
    pub(super) fn groups(&self, most: usize) -> (u64, impl Iterator<Item = StepPoint>) {
        let points = self.points.len().div_ceil(most.max(1)).max(1);
        let sum = |group: &[StepPoint]| group[1..].iter().fold(group[0], |sum, next| sum.and(next));
        (points as u64 * self.steps_a_point, self.points.chunks(points).map(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(steps: u64) -> StepPoints {
        let mut points = StepPoints::new();
        (0..steps)
            .for_each(|step| points.add(StepPoint { step, steps: 1, used: step, ..StepPoint::default() }));
        points
    }

    #[test]
    fn few_steps_are_kept_as_they_are_and_many_in_bounded_memory_as_sums() {
        let most = MOST_POINTS as u64;
        for steps in [1, 799, most, most + 1, 3 * most + 7, 10 * most + 1] {
            let points = points(steps);
            assert!(points.points.len() <= MOST_POINTS && points.points.len() as u64 >= steps.min(most / 2));
            assert_eq!((points.steps, points.last_step), (steps, Some(steps - 1)));
            let (each, groups) = points.groups(400);
            let groups: Vec<StepPoint> = groups.collect();
            assert!(groups.len() <= 400 && (steps < 400 || groups.len() > 200), "{steps}: {}", groups.len());
            let mut next = 0;
            for group in &groups {
                assert_eq!(group.step, next, "{steps}");
                assert_eq!(group.used, (next..next + group.steps).sum::<u64>(), "{steps}");
                next += group.steps;
                assert!(group.steps == each || next == steps, "{steps}: {group:?}");
            }
            assert_eq!(next, steps);
        }
    }
}
