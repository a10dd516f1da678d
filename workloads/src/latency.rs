//! Statistics of repeated measurements.

/// The percentiles that `vllm bench latency` prints.
pub const PERCENTILES: [u32; 6] = [10, 25, 50, 75, 90, 99];

/// The `p`-th percentile (0 to 100) of ascending `sorted`, by numpy's default: linear interpolation between the two
/// values around rank `(n - 1) * p / 100`. `None` for an empty slice; `p` outside 0..=100 is clamped.
#[must_use]
pub fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let (below, t) = rank(sorted.len() as u64, p / 100.0);
    let below = (below as usize).min(last);
    Some(between(sorted[below], sorted[(below + 1).min(last)], t))
}

/// The value that `share` (0 to 1) of `count` values do not exceed, by the same rule. `at(n)` is the value
/// with n values before it in ascending order.
pub(crate) fn quantile(count: u64, share: f64, at: impl Fn(u64) -> f64) -> f64 {
    let (below, t) = rank(count, share);
    let low = at(below);
    if t == 0.0 { low } else { between(low, at(below + 1), t) }
}

/// Where numpy looks for the value that `share` (0 to 1) of `count` values do not exceed: how many values
/// lie before it in ascending order, and how far it is from there to the next value, from 0 to 1. Together
/// they are `(count - 1) * share`.
fn rank(count: u64, share: f64) -> (u64, f64) {
    let last = count.saturating_sub(1);
    let rank = last as f64 * share.clamp(0.0, 1.0);
    let below = (rank.floor() as u64).min(last);
    (below, rank - below as f64)
}

/// The value `t` of the way from `low` to `high`. Like numpy it computes from the nearer end, so that t = 1
/// gives exactly `high`.
fn between(low: f64, high: f64, t: f64) -> f64 {
    if t >= 0.5 { high - (high - low) * (1.0 - t) } else { low + (high - low) * t }
}

/// Repeated measurements of one quantity, in ascending order. It is never empty and has no NaN.
#[derive(Clone, Debug, PartialEq)]
pub struct Spread {
    sorted: Vec<f64>,
    mean: f64,
}

impl Spread {
    /// Takes measurements in any order. `None` if there are none, or if one is NaN.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|v| v.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { sorted, mean })
    }

    /// The number of measurements.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The mean.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The least value.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.sorted[0]
    }

    /// The greatest value.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The median.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    /// The `p`-th percentile; see [`percentile`].
    #[must_use]
    pub fn percentile(&self, p: f64) -> f64 {
        percentile(&self.sorted, p).unwrap_or(self.mean)
    }

    /// The distance between the greatest and the least value as a share of the median; 0 if the median is
    /// 0.
    #[must_use]
    pub fn relative_range(&self) -> f64 {
        let median = self.median();
        if median == 0.0 { 0.0 } else { (self.max() - self.min()) / median }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: walks the polyline through the points (rank, value).
    fn naive(values: &[f64], p: f64) -> f64 {
        let mut v = values.to_vec();
        v.sort_by(f64::total_cmp);
        let x = p / 100.0 * (v.len() - 1) as f64;
        for i in 0..v.len() - 1 {
            if x >= i as f64 && x <= (i + 1) as f64 {
                return v[i] * ((i + 1) as f64 - x) + v[i + 1] * (x - i as f64);
            }
        }
        v[v.len() - 1]
    }

    #[test]
    fn percentiles_are_those_numpy_gives() {
        // numpy.percentile([15, 20, 35, 40, 50], [10, 25, 50, 75, 90, 99])
        let s = Spread::of(&[35.0, 20.0, 15.0, 50.0, 40.0]).unwrap();
        let got: Vec<f64> = PERCENTILES.iter().map(|&p| s.percentile(f64::from(p))).collect();
        for (g, w) in got.iter().zip([17.0, 20.0, 35.0, 40.0, 46.0, 49.6]) {
            assert!((g - w).abs() < 1e-12, "{g} {w}");
        }
    }

    #[test]
    fn one_measurement_is_every_percentile_and_none_is_none() {
        let s = Spread::of(&[3.5]).unwrap();
        assert!([0.0, 10.0, 99.0, 100.0].iter().all(|&p| s.percentile(p) == 3.5));
        assert_eq!((s.min(), s.max(), s.mean(), s.relative_range()), (3.5, 3.5, 3.5, 0.0));
        assert!(Spread::of(&[]).is_none() && Spread::of(&[f64::NAN]).is_none());
        assert_eq!(percentile(&[], 50.0), None);
    }

    proptest! {
        #[test]
        fn percentiles_agree_with_the_polyline(v in prop::collection::vec(-1e6f64..1e6, 1..60), p in 0.0f64..=100.0) {
            let s = Spread::of(&v).unwrap();
            prop_assert!((s.percentile(p) - naive(&v, p)).abs() <= 1e-9 * 1e6);
            prop_assert!(s.percentile(0.0) == s.min() && s.percentile(100.0) == s.max());
        }
    }
}
