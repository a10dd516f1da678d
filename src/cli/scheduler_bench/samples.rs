//! Statistics of many steps in bounded memory.

use pagedraft_workloads::latency::Spread;

/// The most steps that are kept. If there are more, a random sample of this size is kept.
const MOST: usize = 1 << 16;

/// The parts of a step's time.
pub const PARTS: [&str; 4] = ["schedule", "apply", "metadata", "total"];

/// The seconds of each part of steps, with the sum last. All steps are kept up to [`MOST`]; with more steps
/// it is a uniform sample (Vitter's algorithm R). Means are over all steps.
pub struct Samples {
    kept: Vec<[f64; PARTS.len()]>,
    sums: [f64; PARTS.len()],
    seen: u64,
    /// The state of a SplitMix64 generator.
    dice: u64,
}

impl Samples {
    pub fn new(steps: u32) -> Self {
        let kept = Vec::with_capacity((steps as usize).min(MOST));
        Self { kept, sums: [0.0; PARTS.len()], seen: 0, dice: 0 }
    }

    pub fn push(&mut self, schedule: f64, apply: f64, metadata: f64) {
        let step = [schedule, apply, metadata, schedule + apply + metadata];
        for (sum, seconds) in self.sums.iter_mut().zip(step) {
            *sum += seconds;
        }
        self.seen += 1;
        if self.kept.len() < MOST {
            self.kept.push(step);
            return;
        }
        let place = self.draw() % self.seen;
        if let Some(kept) = usize::try_from(place).ok().and_then(|place| self.kept.get_mut(place)) {
            *kept = step;
        }
    }

    /// The number of steps.
    pub fn count(&self) -> u64 {
        self.seen
    }

    /// The mean, the median and the 99th percentile of each part, in microseconds. There are none without
    /// steps.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, [f64; 3])> + '_ {
        PARTS.iter().enumerate().filter_map(|(part, name)| {
            let seconds: Vec<f64> = self.kept.iter().map(|step| step[part]).collect();
            let spread = Spread::of(&seconds)?;
            let mean = self.sums[part] / self.seen as f64;
            Some((*name, [mean, spread.median(), spread.percentile(99.0)].map(|s| s * 1e6)))
        })
    }

    fn draw(&mut self) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, Samples};

    #[test]
    fn few_steps_are_all_kept_and_many_are_sampled_evenly() {
        let mut few = Samples::new(3);
        for seconds in [3e-6, 1e-6, 2e-6] {
            few.push(seconds, 0.0, seconds);
        }
        let figures: Vec<_> = few.figures().collect();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(figures[0].0 == "schedule" && near(figures[0].1[0], 2.0) && near(figures[0].1[1], 2.0));
        assert!(figures[3].0 == "total" && near(figures[3].1[1], 4.0) && near(figures[1].1[2], 0.0));

        let steps = 20 * MOST;
        let mut many = Samples::new(u32::MAX);
        (0..steps).for_each(|i| many.push(i as f64 * 1e-6, 0.0, 0.0));
        assert_eq!((many.kept.len(), many.kept.capacity(), many.count()), (MOST, MOST, steps as u64));
        let [mean, median, p99] = many.figures().next().map(|(_, figures)| figures).unwrap_or_default();
        let share = |us: f64| us / steps as f64;
        assert!((share(mean) - 0.5).abs() < 1e-3, "{mean}");
        assert!((share(median) - 0.5).abs() < 0.01 && (share(p99) - 0.99).abs() < 0.005, "{median} {p99}");
    }
}
