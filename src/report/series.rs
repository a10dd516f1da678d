//! Computes what happened over time from the times at which each request came, began and ended.

use super::requests::Finished;

/// Counts in bins of equal length.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bins {
    pub(super) from_s: f64,
    pub(super) width_s: f64,
    pub(super) counts: Vec<f64>,
}

impl Bins {
    /// Bins over a time span, all 0.
    pub(super) fn new(span: (f64, f64), bins: usize) -> Self {
        let width_s = ((span.1 - span.0) / bins as f64).max(1e-9);
        Self { from_s: span.0, width_s, counts: vec![0.0; bins] }
    }

    fn bin(&self, at_s: f64) -> usize {
        let last = self.counts.len().saturating_sub(1);
        (((at_s - self.from_s) / self.width_s).max(0.0) as usize).min(last)
    }

    /// Adds an amount at a time.
    pub(super) fn add(&mut self, at_s: f64, amount: f64) {
        let bin = self.bin(at_s);
        if let Some(count) = self.counts.get_mut(bin) {
            *count += amount;
        }
    }

    /// Spreads an amount evenly from one time to another.
    pub(super) fn spread(&mut self, from_s: f64, to_s: f64, amount: f64) {
        let (first, last) = (self.bin(from_s), self.bin(to_s));
        let length = to_s - from_s;
        if first == last || length.is_nan() || length <= 0.0 {
            return self.add(to_s, amount);
        }
        for bin in first..=last {
            let left = self.from_s + bin as f64 * self.width_s;
            let inside = (left + self.width_s).min(to_s) - left.max(from_s);
            self.counts[bin] += amount * (inside.max(0.0) / length);
        }
    }

    /// The amount per second in each bin, at the bins' left ends.
    pub(super) fn rates(&self) -> Vec<(f64, f64)> {
        self.points(|count| count / self.width_s)
    }

    /// The counts themselves, at the bins' left ends. The last one is repeated at its right end.
    pub(super) fn points(&self, of: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        let at = |i: usize| self.from_s + i as f64 * self.width_s;
        let mut points: Vec<_> = self.counts.iter().enumerate().map(|(i, c)| (at(i), of(*c))).collect();
        if let Some(&(_, last)) = points.last() {
            points.push((at(self.counts.len()), last));
        }
        points
    }
}

/// The mean number of waiting and of running requests in each bin. These are exact integrals of the
/// requests' own times.
pub(super) fn in_flight(requests: &[Finished], span: (f64, f64), bins: usize) -> (Bins, Bins) {
    let (mut waiting, mut running) = (Bins::new(span, bins), Bins::new(span, bins));
    for request in requests {
        let began = (request.intended_s + request.queue_ms.unwrap_or(0.0) / 1e3).min(request.finish_s);
        let width = waiting.width_s;
        waiting.spread(request.intended_s, began, (began - request.intended_s).max(0.0) / width);
        running.spread(began, request.finish_s, (request.finish_s - began).max(0.0) / width);
    }
    (waiting, running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spread_adds_up_and_lies_where_it_was() {
        let mut bins = Bins::new((0.0, 10.0), 5);
        bins.spread(1.0, 5.0, 8.0);
        assert_eq!(bins.counts, [2.0, 4.0, 2.0, 0.0, 0.0]);
        bins.add(10.0, 1.0);
        assert_eq!(bins.counts[4], 1.0);
        assert_eq!(bins.rates()[1], (2.0, 2.0));
    }

    #[test]
    fn waiting_and_running_are_time_averages() {
        let request = Finished { finish_s: 4.0, queue_ms: Some(1000.0), ..Finished::default() };
        let (waiting, running) = in_flight(&[request, request], (0.0, 4.0), 4);
        assert_eq!(waiting.counts, [2.0, 0.0, 0.0, 0.0]);
        assert_eq!(running.counts, [0.0, 2.0, 2.0, 2.0]);
    }
}
