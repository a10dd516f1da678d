use hdrhistogram::Histogram;

use super::figures::Figures;
use crate::latency::quantile;

/// The distribution of durations in nanoseconds.
///
/// The values are kept as well, as runs of equal ones, and as long as there are no more than [`MOST_KEPT`] runs, percentiles are
/// exactly numpy's. Beyond that there is only a histogram of 3 significant digits, so that memory stays bounded: numpy's rule
/// is then applied to values that are up to 0.1 % too high. Mean, deviation and maximum are exact in both cases.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    histogram: Histogram<u64>,
    /// All values in the order of recording, each with the number of times that it was recorded in a row; `None` once
    /// there are too many.
    kept: Option<Vec<(u64, u64)>>,
    sum: u128,
    sum_of_squares: u128,
    max: u64,
}

/// Longer durations count as this one, about 290 years.
const MOST_NS: u64 = i64::MAX as u64;
/// The number of runs that are kept. They take 512 KiB.
pub(super) const MOST_KEPT: usize = 1 << 15;

impl Distribution {
    pub(super) fn new() -> Self {
        // The histogram grows with the greatest value, up to 440 KB.
        let Ok(histogram) = Histogram::new(3) else { unreachable!("3 digits are between 0 and 5") };
        let kept = Some(Vec::with_capacity(MOST_KEPT));
        Self { histogram, kept, sum: 0, sum_of_squares: 0, max: 0 }
    }

    pub(super) fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// Records the same value `count` times.
    pub(super) fn record_n(&mut self, ns: u64, count: u64) {
        if count == 0 {
            return;
        }
        let ns = ns.min(MOST_NS);
        match self.kept.as_mut().and_then(|kept| kept.last_mut()) {
            Some((last, times)) if *last == ns => *times = times.saturating_add(count),
            _ => {
                if let Some(kept) = self.room_for(1) {
                    kept.push((ns, count));
                }
            }
        }
        // The histogram refuses a value only if it can't grow to it, and it can grow to every u64.
        let recorded = self.histogram.record_n(ns, count);
        debug_assert!(recorded.is_ok());
        let sum = u128::from(ns) * u128::from(count);
        self.sum = self.sum.saturating_add(sum);
        self.sum_of_squares = self.sum_of_squares.saturating_add(sum.saturating_mul(u128::from(ns)));
        self.max = self.max.max(ns);
    }

    /// The list of runs if it has room for `more` of them. Otherwise `None`, now and later.
    fn room_for(&mut self, more: usize) -> Option<&mut Vec<(u64, u64)>> {
        self.kept.take_if(|kept| more > MOST_KEPT - kept.len());
        self.kept.as_mut()
    }

    /// Adds all values of `other`.
    pub(super) fn add(&mut self, other: &Self) {
        match &other.kept {
            Some(more) => {
                if let Some(kept) = self.room_for(more.len()) {
                    kept.extend_from_slice(more);
                }
            }
            None => self.kept = None,
        }
        let added = self.histogram.add(&other.histogram);
        debug_assert!(added.is_ok());
        self.sum = self.sum.saturating_add(other.sum);
        self.sum_of_squares = self.sum_of_squares.saturating_add(other.sum_of_squares);
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The variance as in `numpy.var` (divided by the count), in square nanoseconds.
    fn variance(&self) -> f64 {
        let n = u128::from(self.count().max(1));
        // Sums around the whole part of the mean are whole numbers, so no digits cancel.
        let (whole, rest) = (self.sum / n, self.sum % n);
        let around = self.sum_of_squares.saturating_sub(whole.saturating_mul(self.sum.saturating_add(rest)));
        (around as f64 / n as f64 - (rest as f64 / n as f64).powi(2)).max(0.0)
    }

    /// The statistics in milliseconds. All are `None` if there are no values.
    pub(super) fn figures(&self) -> Figures {
        let n = self.count();
        let of = |value: f64| (n > 0).then_some(value * 1e-6);
        let bins = self.cumulated();
        // The value with `rank` values before it in ascending order.
        let ranked =
            |rank: u64| bins.get(bins.partition_point(|bin| bin.0 <= rank)).map_or(self.max, |bin| bin.1);
        let at = |share| (n > 0).then(|| quantile(n, share, |rank| ranked(rank) as f64 / 1e6));
        Figures {
            mean: of(self.sum as f64 / n as f64),
            median: at(0.5),
            std: of(self.variance().sqrt()),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: (n > 0).then_some(self.max as f64 / 1e6),
        }
    }

    /// The values in ascending order, each behind the number of values up to it. Where they are not kept, they are those of
    /// the histogram's bins: a bin's upper end, but never more than the greatest value.
    fn cumulated(&self) -> Vec<(u64, u64)> {
        let mut upto = 0;
        if let Some(kept) = &self.kept {
            let mut runs = kept.clone();
            runs.sort_unstable();
            for run in &mut runs {
                upto += run.1;
                *run = (upto, run.0);
            }
            return runs;
        }
        let bins = self.histogram.iter_recorded().map(|bin| {
            upto += bin.count_at_value();
            (upto, bin.value_iterated_to().min(self.max))
        });
        bins.collect()
    }

    /// Pairs of `[upper bound in ms, count]` in ascending order, without gaps between the first and the
    /// last bucket that hold any value. The bounds are powers of ten with 10 buckets per decade (fewer if
    /// that would make more than 80 buckets), the same in every run.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        for a_decade in [10i32, 5, 2, 1] {
            let bucket = |ns: u64| ((ns.max(1) as f64).log10() * f64::from(a_decade) - 1e-9).ceil() as i32;
            let (first, last) = (bucket(self.histogram.min()), bucket(self.max));
            if self.count() == 0 || last - first >= 80 {
                continue;
            }
            let bound = |b: i32| 10f64.powf(f64::from(b) / f64::from(a_decade) - 6.0);
            let mut buckets: Vec<_> = (first..=last).map(|b| (bound(b), 0)).collect();
            for value in self.histogram.iter_recorded() {
                let at = bucket(value.value_iterated_to().min(self.max)) - first;
                if let Some((_, count)) = usize::try_from(at).ok().and_then(|at| buckets.get_mut(at)) {
                    *count += value.count_at_value();
                }
            }
            return buckets;
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the point at `share * (n - 1)` of the line through the points (rank, value).
    fn naive(sorted: &[u64], share: f64) -> f64 {
        let x = share * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[x.floor() as usize] as f64, sorted[x.ceil() as usize] as f64);
        low + (high - low) * x.fract()
    }

    #[test]
    fn of_an_even_number_of_values_the_median_is_the_mean_of_the_middle_two() {
        let mut d = Distribution::new();
        [1_060_000, 2_640_000].iter().for_each(|&ns| d.record(ns));
        assert_eq!(d.figures().median, Some(1.85));
        // numpy.percentile([15, 20, 35, 40], [90, 95, 99])
        let mut d = Distribution::new();
        [35_000_000, 15_000_000, 40_000_000, 20_000_000].iter().for_each(|&ns| d.record(ns));
        let f = d.figures();
        for (got, want) in [(f.median, 27.5), (f.p90, 38.5), (f.p95, 39.25), (f.p99, 39.85)] {
            assert!((got.unwrap() - want).abs() < 1e-12, "{got:?} for {want}");
        }
    }

    #[test]
    fn beyond_the_values_that_are_kept_percentiles_are_a_histograms_and_memory_is_bounded() {
        let mut d = Distribution::new();
        let all = MOST_KEPT as u64 + 1;
        let values: Vec<u64> = (0..all).map(|i| 1_000_000 + i * 7919 % all * 1000).collect();
        let mut sorted = values.clone();
        sorted.sort_unstable();
        for (before, &ns) in values.iter().enumerate() {
            assert_eq!(d.kept.as_ref().map(Vec::len), Some(before));
            d.record(ns);
        }
        assert!(d.kept.is_none() && d.count() == all);
        for (share, got) in [(0.5, d.figures().median), (0.99, d.figures().p99)] {
            let (got, want) = (got.unwrap() * 1e6, naive(&sorted, share));
            assert!(got >= want * (1.0 - 1e-9) && got <= want * 1.001, "{got} for {want}");
        }
        let mut both = Distribution::new();
        both.record(5);
        both.add(&d);
        d.record(5);
        assert_eq!(both.figures(), d.figures());
    }

    proptest! {
        #[test]
        fn figures_are_those_of_the_sorted_values(
            values in prop::collection::vec(prop_oneof![0u64..3000, 0..10_000_000_000u64, 0..1u64 << 50], 1..200),
        ) {
            let mut d = Distribution::new();
            values.iter().for_each(|&v| d.record(v));
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let f = d.figures();
            for (quantile, got) in
                [(0.5, f.median), (0.9, f.p90), (0.95, f.p95), (0.99, f.p99), (0.999, f.p99_9)]
            {
                let (got, want) = (got.unwrap() * 1e6, naive(&sorted, quantile));
                prop_assert!((got - want).abs() <= 1e-9 * want + 1e-6, "{quantile}: {got} for {want}");
            }
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| v as f64).sum::<f64>() / n;
            let std = (values.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n).sqrt();
            prop_assert!((f.mean.unwrap() * 1e6 - mean).abs() <= 1e-9 * mean + 1e-6);
            prop_assert!((f.std.unwrap() * 1e6 - std).abs() <= 1e-9 * std + 1e-6);
            prop_assert_eq!(f.max, Some(sorted[sorted.len() - 1] as f64 / 1e6));
            prop_assert_eq!(d.buckets().iter().map(|b| b.1).sum::<u64>(), values.len() as u64);
            prop_assert!(d.buckets().len() <= 80 && d.buckets().is_sorted_by(|a, b| a.0 < b.0));
        }

        #[test]
        fn recording_n_times_at_once_is_recording_n_times(values in prop::collection::vec((any::<u64>(), 0u64..9), 1..40)) {
            let (mut one, mut many) = (Distribution::new(), Distribution::new());
            let mut parts = [Distribution::new(), Distribution::new()];
            for (i, &(v, n)) in values.iter().enumerate() {
                many.record_n(v, n);
                parts[i % 2].record_n(v, n);
                (0..n).for_each(|_| one.record(v));
            }
            let [mut merged, other] = parts;
            merged.add(&other);
            prop_assert_eq!(one.figures(), many.figures());
            prop_assert_eq!(one.figures(), merged.figures());
            prop_assert_eq!(one.buckets(), many.buckets());
        }
    }

    #[test]
    fn a_small_deviation_around_a_great_mean_is_exact() {
        let mut d = Distribution::new();
        d.record_n(3_600_000_000_001, 500_000);
        d.record_n(3_600_000_000_003, 500_000);
        assert_eq!(d.figures().std, Some(1e-6));
    }

    #[test]
    fn nothing_has_no_figures() {
        assert_eq!(Distribution::new().figures(), Figures::default());
        assert!(Distribution::new().buckets().is_empty());
    }
}
