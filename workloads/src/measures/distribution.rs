use hdrhistogram::Histogram;

use super::figures::Figures;

/// Durations in nanoseconds: their histogram (3 significant digits) for percentiles, and exact sums for mean and deviation.
#[derive(Clone, Debug)]
pub(super) struct Distribution {
    histogram: Histogram<u64>,
    sum: u128,
    sum_of_squares: u128,
    max: u64,
}

/// Longer durations count as this, some 290 years.
const MOST_NS: u64 = i64::MAX as u64;

impl Distribution {
    pub(super) fn new() -> Self {
        // It grows with the greatest value, to 440 KB at most.
        let Ok(histogram) = Histogram::new(3) else { unreachable!("3 digits are between 0 and 5") };
        Self { histogram, sum: 0, sum_of_squares: 0, max: 0 }
    }

    pub(super) fn record(&mut self, ns: u64) {
        self.record_n(ns, 1);
    }

    /// The same `count` times.
    pub(super) fn record_n(&mut self, ns: u64, count: u64) {
        if count == 0 {
            return;
        }
        let ns = ns.min(MOST_NS);
        // It can only refuse what it can't grow to, and it can grow to every u64.
        let recorded = self.histogram.record_n(ns, count);
        debug_assert!(recorded.is_ok());
        let sum = u128::from(ns) * u128::from(count);
        self.sum = self.sum.saturating_add(sum);
        self.sum_of_squares = self.sum_of_squares.saturating_add(sum.saturating_mul(u128::from(ns)));
        self.max = self.max.max(ns);
    }

    /// Takes in all of `other`.
    pub(super) fn add(&mut self, other: &Self) {
        let added = self.histogram.add(&other.histogram);
        debug_assert!(added.is_ok());
        self.sum = self.sum.saturating_add(other.sum);
        self.sum_of_squares = self.sum_of_squares.saturating_add(other.sum_of_squares);
        self.max = self.max.max(other.max);
    }

    pub(super) fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The value that so great a share of the values are not above, from the histogram: at most 0.1 % too high, and never above
    /// the greatest. 0 of nothing.
    pub(super) fn quantile_ns(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile).min(self.max)
    }

    /// Variance as `numpy.var` has it (divided by the count), in square nanoseconds.
    fn variance(&self) -> f64 {
        let n = u128::from(self.count().max(1));
        // Around the mean's whole part everything is a whole number, so that nothing cancels.
        let (whole, rest) = (self.sum / n, self.sum % n);
        let around = self.sum_of_squares.saturating_sub(whole.saturating_mul(self.sum.saturating_add(rest)));
        (around as f64 / n as f64 - (rest as f64 / n as f64).powi(2)).max(0.0)
    }

    /// In milliseconds; without values all are `None`.
    pub(super) fn figures(&self) -> Figures {
        let n = self.count();
        let of = |value: f64| (n > 0).then_some(value * 1e-6);
        let at = |quantile| (n > 0).then_some(self.quantile_ns(quantile) as f64 / 1e6);
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

    /// `[upper bound in ms, count]` in ascending order, without gaps between the first and the last bucket that hold any:
    /// buckets by powers of ten, 10 a decade (fewer where that would be more than 80), the same for every run.
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

    /// The least value that at least this share of the values are not above.
    fn naive(sorted: &[u64], quantile: f64) -> u64 {
        let rank = (quantile * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted[rank - 1]
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
                let (got, want) = (got.unwrap() * 1e6, naive(&sorted, quantile) as f64);
                // Never below (but for the last bit of a float), at most 0.1 % above.
                prop_assert!(got >= want * (1.0 - 1e-12) && got <= want * 1.001 + 1e-3, "{quantile}: {got} for {want}");
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
