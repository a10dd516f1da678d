use rand::SeedableRng;
use rand::distr::Distribution;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Exp1, Gamma};

use super::Arrivals;

/// With more requests than this, the draws are not summed beforehand. It would take minutes, and the sum of
/// so many draws deviates from the expected one by only a few parts in a hundred thousand.
const SUMMED_AT_MOST: u64 = 1_000_000_000;

/// The intended arrival times, one after the other.
#[derive(Clone, Debug)]
pub struct ArrivalTimes {
    process: Process,
    last_ns: u64,
}

#[derive(Clone, Debug)]
enum Process {
    Recorded { speed: f64 },
    AtOnce,
    Constant { rate: f64, index: u64 },
    Drawn { gaps: Box<Gaps>, total: f64, factor: f64 },
}

/// Gaps drawn one after the other, in seconds.
#[derive(Clone, Debug)]
struct Gaps {
    random: ChaCha8Rng,
    law: Law,
    index: u64,
}

#[derive(Clone, Debug)]
enum Law {
    Gamma { unit: Gamma<f64>, scale: f64 },
    Ramp { from: f64, to: f64, exponential: bool, last: f64 },
}

impl ArrivalTimes {
    /// Makes the times. The parameters were found to be positive.
    pub(super) fn new(arrivals: Arrivals, items: u64, seed: u64) -> Result<Self, String> {
        let law = match arrivals {
            Arrivals::Recorded { speed } => return Ok(Self::of(Process::Recorded { speed })),
            Arrivals::AtOnce => return Ok(Self::of(Process::AtOnce)),
            Arrivals::Constant { rate } => return Ok(Self::of(Process::Constant { rate, index: 0 })),
            Arrivals::Gamma { rate, burstiness } => {
                let unit =
                    Gamma::new(burstiness, 1.0).map_err(|e| format!("--burstiness is {burstiness}: {e}"))?;
                Law::Gamma { unit, scale: 1.0 / (rate * burstiness) }
            }
            Arrivals::Ramp { from, to, exponential } => {
                Law::Ramp { from, to, exponential, last: items.saturating_sub(1).max(1) as f64 }
            }
        };
        let gaps = Gaps { random: ChaCha8Rng::seed_from_u64(seed), law, index: 0 };
        let mut factor = 1.0;
        if items <= SUMMED_AT_MOST {
            let mut draws = gaps.clone();
            let drawn: f64 = (0..items).map(|_| draws.draw()).sum();
            let asked = arrivals.rate_asked().map_or(drawn, |rate| items as f64 / rate);
            // If all draws are 0, or there are none, there is nothing to scale.
            if drawn > 0.0 && (asked / drawn).is_finite() {
                factor = asked / drawn;
            }
        }
        Ok(Self::of(Process::Drawn { gaps: Box::new(gaps), total: 0.0, factor }))
    }

    fn of(process: Process) -> Self {
        Self { process, last_ns: 0 }
    }

    /// The next time, in nanoseconds since the run began. `recorded_s` is the trace's own time. `None`
    /// means as soon as there is room; this happens for recorded arrivals if the record has no time. No
    /// time is earlier than the one before: a trace whose times go back sends the late requests at once.
    pub fn next(&mut self, recorded_s: Option<f64>) -> Option<u64> {
        let seconds = match &mut self.process {
            Process::Recorded { speed } => recorded_s? / *speed,
            Process::AtOnce => 0.0,
            Process::Constant { rate, index } => {
                let seconds = *index as f64 / *rate;
                *index += 1;
                seconds
            }
            Process::Drawn { gaps, total, factor } => {
                *total += gaps.draw();
                *total * *factor
            }
        };
        // The cast saturates if the value is too large, and NaN becomes 0.
        self.last_ns = self.last_ns.max((seconds * 1e9).round() as u64);
        Some(self.last_ns)
    }
}

impl Gaps {
    fn draw(&mut self) -> f64 {
        match &self.law {
            Law::Gamma { unit, scale } => unit.sample(&mut self.random) * scale,
            Law::Ramp { from, to, exponential, last } => {
                let progress = (self.index as f64 / last).min(1.0);
                self.index += 1;
                let rate = if *exponential {
                    from * (to / from).powf(progress)
                } else {
                    from + (to - from) * progress
                };
                let gap: f64 = Exp1.sample(&mut self.random);
                gap / rate
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn times(arrivals: Arrivals, items: u64, seed: u64) -> Vec<u64> {
        let mut times = arrivals.times(items, seed).unwrap();
        (0..items).map(|_| times.next(None).unwrap()).collect()
    }

    /// The coefficient of variation of the gaps.
    fn variation(times: &[u64]) -> f64 {
        let gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt() / mean
    }

    #[test]
    fn constant_gaps_do_not_drift_over_a_million_requests() {
        let all = times(Arrivals::Constant { rate: 3.0 }, 1_000_001, 0);
        assert_eq!(all[..4], [0, 333_333_333, 666_666_667, 1_000_000_000]);
        assert_eq!(all[1_000_000], 333_333_333_333_333);
        assert!((0..1000).all(|i| all[3 * i * 300] == i as u64 * 300_000_000_000));
    }

    #[test]
    fn recorded_times_are_divided_by_the_speed_and_rounded_to_a_nanosecond() {
        let mut t = Arrivals::Recorded { speed: 2.0 }.times(5, 0).unwrap();
        assert_eq!(t.next(Some(0.0)), Some(0));
        assert_eq!(t.next(Some(1.000_000_003)), Some(500_000_002));
        assert_eq!(t.next(Some(0.5)), Some(500_000_002), "a time that goes back");
        assert_eq!(t.next(Some(f64::NAN)), Some(500_000_002));
        assert_eq!(t.next(Some(1e300)), Some(u64::MAX));
        assert_eq!(t.next(None), None);
    }

    #[test]
    fn at_once_is_at_the_beginning() {
        assert_eq!(times(Arrivals::AtOnce, 3, 1), [0, 0, 0]);
    }

    #[test]
    fn the_last_of_drawn_arrivals_comes_when_the_rate_says() {
        for burstiness in [0.2, 1.0, 7.0] {
            let all = times(Arrivals::Gamma { rate: 5000.0, burstiness }, 50_000, 7);
            assert!(all[49_999].abs_diff(10_000_000_000) <= 1, "{}", all[49_999]);
            let sent = 49_999.0 / ((all[49_999] - all[0]) as f64 * 1e-9);
            assert!((sent / 5000.0 - 1.0).abs() < 1e-3, "{sent}");
        }
        let one = times(Arrivals::Gamma { rate: 4.0, burstiness: 1.0 }, 1, 7);
        assert_eq!(one, [250_000_000]);
    }

    #[test]
    fn burstiness_sets_the_variation_of_gaps() {
        for burstiness in [0.25, 1.0, 4.0, 100.0] {
            let all = times(Arrivals::Gamma { rate: 10.0, burstiness }, 200_000, 3);
            let (got, want) = (variation(&all), 1.0 / f64::sqrt(burstiness));
            // The standard error of the variation over 200,000 gaps is below 1 % for each of these shapes.
            assert!((got / want - 1.0).abs() < 0.03, "burstiness {burstiness}: {got} for {want}");
        }
    }

    #[test]
    fn a_ramp_goes_from_one_rate_to_the_other() {
        for (exponential, average) in [(false, 90.0 / f64::ln(10.0)), (true, 1000.0 / 90.0 * f64::ln(10.0))] {
            let ramp = Arrivals::Ramp { from: 10.0, to: 100.0, exponential };
            assert!((ramp.rate_asked().unwrap() - average).abs() < 1e-9);
            let all = times(ramp, 100_000, 11);
            let last = *all.last().unwrap() as f64 * 1e-9;
            assert!((last * average / 1e5 - 1.0).abs() < 1e-9, "{last}");
            let rate = |at: usize| 5000.0 / ((all[at + 5000] - all[at]) as f64 * 1e-9);
            // Takes a twentieth of the requests at each end and in the middle. The mean of 1 / rate over it
            // must agree within 4 sigma.
            for (at, progress) in [(0usize, 0.025), (47_500, 0.5), (94_999, 0.975)] {
                let want = if exponential { 10.0 * 10f64.powf(progress) } else { 10.0 + 90.0 * progress };
                assert!((rate(at) / want - 1.0).abs() < 0.08, "{exponential} {at}: {} for {want}", rate(at));
            }
        }
        let flat = Arrivals::Ramp { from: 5.0, to: 5.0, exponential: true };
        assert_eq!(flat.rate_asked(), Some(5.0));
    }

    #[test]
    fn the_seed_sets_the_times() {
        let gamma = Arrivals::Gamma { rate: 2.0, burstiness: 0.5 };
        assert_eq!(times(gamma, 1000, 5), times(gamma, 1000, 5));
        assert_ne!(times(gamma, 1000, 5), times(gamma, 1000, 6));
    }

    #[test]
    fn what_is_not_positive_is_refused_by_the_name_of_its_flag() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            for (arrivals, flag) in [
                (Arrivals::Recorded { speed: bad }, "--speed"),
                (Arrivals::Constant { rate: bad }, "--request-rate"),
                (Arrivals::Gamma { rate: bad, burstiness: 1.0 }, "--request-rate"),
                (Arrivals::Gamma { rate: 1.0, burstiness: bad }, "--burstiness"),
                (Arrivals::Ramp { from: bad, to: 1.0, exponential: false }, "--ramp-up-start-rps"),
                (Arrivals::Ramp { from: 1.0, to: bad, exponential: true }, "--ramp-up-end-rps"),
            ] {
                let error = arrivals.times(10, 0).unwrap_err();
                assert!(error.starts_with(flag), "{error}");
            }
        }
    }

    #[test]
    fn a_rate_of_less_than_a_request_in_a_century_is_refused() {
        let slow = 1e-12;
        for (arrivals, flag) in [
            (Arrivals::Constant { rate: slow }, "--request-rate"),
            (Arrivals::Gamma { rate: slow, burstiness: 1.0 }, "--request-rate"),
            (Arrivals::Ramp { from: slow, to: 2.0 * slow, exponential: false }, "--ramp-up-start-rps"),
        ] {
            let error = arrivals.times(10, 0).unwrap_err();
            assert!(error.starts_with(flag) && error.contains("100 years"), "{error}");
        }
        assert!(Arrivals::Constant { rate: 1e-8 }.times(10, 0).is_ok());
    }

    proptest! {
        #[test]
        fn times_never_go_back_whatever_the_parameters(rate in 1e-300f64..1e300, shape in 1e-300f64..1e9, seed: u64) {
            for arrivals in [
                Arrivals::Gamma { rate, burstiness: shape },
                Arrivals::Constant { rate },
                Arrivals::Ramp { from: rate, to: shape, exponential: seed % 2 == 0 },
            ] {
                if let Ok(mut times) = arrivals.times(50, seed) {
                    let all: Vec<_> = (0..60).filter_map(|_| times.next(None)).collect();
                    prop_assert!(all.len() == 60 && all.is_sorted(), "{arrivals:?} {all:?}");
                }
            }
        }
    }

    #[test]
    fn a_shape_that_draws_nothing_but_zeros_is_refused() {
        let times = |burstiness| Arrivals::Gamma { rate: 1.0, burstiness }.times(10, 0);
        assert!(times(9e-4).unwrap_err().contains("--burstiness is 0.0009; it must be at least 0.001"));
        assert!(times(1e-3).is_ok());
    }
}
