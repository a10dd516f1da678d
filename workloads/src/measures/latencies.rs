use serde::{Deserialize, Serialize};

use super::distribution::Distribution;
use super::figures::{Figures, Latencies, METRICS};

/// Inter-token latencies. If a step gives a request `n` tokens after a gap, this can count in three ways.
/// Without speculation all three are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InterToken {
    /// One value, the gap. This is what a reader of the stream waits for, and vLLM's `itl`, which has one
    /// value per chunk.
    pub step: Figures,
    /// `n` values of gap / n, as if the tokens had come evenly.
    pub token: Figures,
    /// One value of the gap and `n - 1` values of 0. This is what a client sees that notes the time of each
    /// token.
    pub burst: Figures,
}

/// The latencies of one request, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct RequestTimes {
    pub ttft: Option<u64>,
    pub tpot: Option<u64>,
    pub e2el: Option<u64>,
    pub queue: Option<u64>,
}

/// The distributions of the latencies of a set of requests.
#[derive(Clone, Debug)]
pub(super) struct LatencySet {
    ttft: Distribution,
    tpot: Distribution,
    e2el: Distribution,
    queue: Distribution,
    step: Distribution,
    token: Distribution,
    burst: Distribution,
}

impl LatencySet {
    pub(super) fn new() -> Self {
        let new = Distribution::new;
        Self { ttft: new(), tpot: new(), e2el: new(), queue: new(), step: new(), token: new(), burst: new() }
    }

    pub(super) fn request(&mut self, times: &RequestTimes) {
        let Self { ttft, tpot, e2el, queue, .. } = self;
        for (all, value) in [(ttft, times.ttft), (tpot, times.tpot), (e2el, times.e2el), (queue, times.queue)]
        {
            if let Some(ns) = value {
                all.record(ns);
            }
        }
    }

    /// Records that `requests` requests got `tokens` tokens each, `gap_ns` nanoseconds after their last
    /// ones.
    pub(super) fn gap(&mut self, gap_ns: u64, tokens: u64, requests: u64) {
        self.step.record_n(gap_ns, requests);
        self.burst.record_n(gap_ns, requests);
        if tokens == 1 {
            self.token.record_n(gap_ns, requests);
        } else {
            self.token.record_n(gap_ns.saturating_add(tokens / 2) / tokens.max(1), requests * tokens);
            self.burst.record_n(0, requests * tokens.saturating_sub(1));
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.ttft.add(&other.ttft);
        self.tpot.add(&other.tpot);
        self.e2el.add(&other.e2el);
        self.queue.add(&other.queue);
        self.step.add(&other.step);
        self.token.add(&other.token);
        self.burst.add(&other.burst);
    }

    pub(super) fn latencies(&self) -> Latencies {
        Latencies {
            ttft: self.ttft.figures(),
            tpot: self.tpot.figures(),
            itl: self.step.figures(),
            e2el: self.e2el.figures(),
            queue: self.queue.figures(),
        }
    }

    pub(super) fn inter_token(&self) -> InterToken {
        InterToken { step: self.step.figures(), token: self.token.figures(), burst: self.burst.figures() }
    }

    /// The histogram of each metric; see [`Distribution::buckets`].
    pub(super) fn histograms(&self) -> std::collections::BTreeMap<String, Vec<(f64, u64)>> {
        let all = [&self.ttft, &self.tpot, &self.step, &self.e2el, &self.queue];
        METRICS.iter().map(|m| (*m).to_owned()).zip(all.map(Distribution::buckets)).collect()
    }
}

/// The gaps of the rows of a step. Nearly all rows of a step have the same gap, so equal ones are counted
/// here before they are recorded.
#[derive(Clone, Debug, Default)]
pub(super) struct Gaps {
    gap_ns: u64,
    /// At index n, the number of requests that got n + 1 tokens: those outside the steady window, then
    /// those inside.
    requests: Vec<[u64; 2]>,
}

impl Gaps {
    #[inline]
    pub(super) fn row(&mut self, gap_ns: u64, tokens: u16, steady: bool, sets: &mut [LatencySet; 2]) {
        if gap_ns != self.gap_ns {
            self.flush(sets);
            self.gap_ns = gap_ns;
        }
        let at = usize::from(tokens).saturating_sub(1);
        if at >= self.requests.len() {
            self.requests.resize(at + 1, [0; 2]);
        }
        self.requests[at][usize::from(steady)] += 1;
    }

    /// Records what was counted. It is called once per step, and when the gap changes.
    pub(super) fn flush(&mut self, sets: &mut [LatencySet; 2]) {
        for (less_one, requests) in self.requests.iter_mut().enumerate() {
            for (set, requests) in sets.iter_mut().zip(std::mem::take(requests)) {
                if requests > 0 {
                    set.gap(self.gap_ns, less_one as u64 + 1, requests);
                }
            }
        }
    }
}
