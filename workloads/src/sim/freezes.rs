//! The times in which an engine does nothing.

use super::Freeze;

/// Times in which nothing is done, in nanoseconds since the run began. They ascend and do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Freezes {
    spans: Vec<(u64, u64)>,
}

impl Freezes {
    /// Merges freezes that overlap.
    ///
    /// # Errors
    ///
    /// A time is negative or not a number.
    pub(super) fn new(freezes: &[Freeze]) -> Result<Self, String> {
        let mut spans = Vec::with_capacity(freezes.len());
        for freeze in freezes {
            let Freeze { at_s, for_s } = *freeze;
            if !(at_s.is_finite() && at_s >= 0.0 && for_s.is_finite() && for_s >= 0.0) {
                return Err(format!(
                    "a freeze of the cost model is at {at_s} s for {for_s} s: both are numbers of seconds from 0 on"
                ));
            }
            let from = (at_s * 1e9).round() as u64;
            spans.push((from, from.saturating_add((for_s * 1e9).round() as u64)));
        }
        spans.retain(|(from, to)| from < to);
        spans.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(spans.len());
        for (from, to) in spans {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Ok(Self { spans: merged })
    }

    /// When a step ends that begins at `start` and takes `length`. Freezes in between make it longer.
    pub(super) fn end(&self, start: u64, length: u64) -> u64 {
        let mut end = start.saturating_add(length);
        for &(from, to) in &self.spans {
            let within = from <= start && start < to;
            if within || (start < from && from < end) {
                end = end.saturating_add(to - from.max(start));
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn freezes(of: &[(f64, f64)]) -> Freezes {
        let of: Vec<Freeze> = of.iter().map(|&(at_s, for_s)| Freeze { at_s, for_s }).collect();
        Freezes::new(&of).unwrap()
    }

    #[test]
    fn a_step_waits_for_what_of_a_freeze_lies_before_its_end() {
        let one = freezes(&[(10e-9, 100e-9)]);
        // The step ends as the freeze begins, runs into it, begins with it, begins within it, or begins as
        // it ends.
        assert_eq!(one.end(5, 5), 10);
        assert_eq!(one.end(5, 6), 111);
        assert_eq!(one.end(10, 5), 115);
        assert_eq!(one.end(60, 5), 115);
        assert_eq!(one.end(110, 5), 115);
        assert_eq!(one.end(200, 5), 205);
    }

    #[test]
    fn the_wait_for_one_freeze_can_end_in_the_next_and_overlapping_ones_are_one() {
        let two = freezes(&[(200e-9, 50e-9), (10e-9, 100e-9)]);
        assert_eq!(two.end(5, 90), 195);
        assert_eq!(two.end(5, 101), 256);
        let overlapping = freezes(&[(0.0, 10e-9), (5e-9, 10e-9), (15e-9, 1e-9), (40e-9, 0.0)]);
        assert_eq!(overlapping.spans, [(0, 16)]);
        assert_eq!(overlapping.end(0, 3), 19);
    }

    #[test]
    fn times_that_are_none_are_refused_and_long_ones_do_not_overflow() {
        for (at_s, for_s) in [(-1.0, 1.0), (1.0, f64::NAN), (f64::INFINITY, 1.0)] {
            assert!(Freezes::new(&[Freeze { at_s, for_s }]).is_err());
        }
        assert_eq!(freezes(&[(1e300, 1e300), (0.0, 1e300)]).end(7, 1), u64::MAX);
    }
}
