use crate::RequestKey;
use crate::acceptance::Common;

/// The share of the time that probes may take.
const PRICE: f64 = 0.003;
/// Steps between two probes, at least and (after probes that said no) at most.
const WAIT: (u32, u32) = (16, 1024);
/// Steps a probe lasts at most, and without anything accepted.
const LENGTH: u32 = 16;
const MISSES: u32 = 2;
/// Steps that a probe that says no is expected to take.
const EXPECTED: f64 = 3.0;
/// Tokens a request must have before it to be worth a probe.
const LEFT: u32 = 8;

#[derive(Clone, Copy, Debug)]
struct Probe {
    request: RequestKey,
    steps: u32,
    hits: u32,
    misses: u32,
}

/// Tries a draft now and then while none pays, so that a better acceptance is noticed.
///
/// Probes are paid from a credit that grows with the time of the steps without drafts. A probe stays with one
/// request for a few steps, because it is catching up that costs, and waits twice as long after each that said no.
#[derive(Clone, Debug)]
pub(crate) struct Probing {
    probe: Option<Probe>,
    credit_us: f64,
    waited: u32,
    wait: u32,
    started: u64,
    /// The request that costs least to wake, its lag.
    cheapest: Option<(RequestKey, u32)>,
    /// The lag of the one that is being probed.
    probed: Option<u32>,
}

impl Default for Probing {
    fn default() -> Self {
        Self {
            probe: None,
            credit_us: 0.0,
            waited: 0,
            wait: WAIT.0,
            started: 0,
            cheapest: None,
            probed: None,
        }
    }
}

impl Probing {
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    pub(crate) fn stop(&mut self) {
        self.probe = None;
    }

    pub(crate) fn begin(&mut self) {
        (self.cheapest, self.probed) = (None, None);
    }

    /// A request that could be probed: the proposer is `lag` tokens behind, and `left` are to come.
    pub(crate) fn consider(&mut self, key: RequestKey, lag: u32, left: u32) {
        if self.probe.is_some_and(|probe| probe.request == key) {
            self.probed = Some(lag);
        }
        if left >= LEFT && self.cheapest.is_none_or(|(_, least)| lag < least) {
            self.cheapest = Some((key, lag));
        }
    }

    /// The request to probe in a step that takes `off_us` without drafts. `price` is what a step of a probe costs, by
    /// the lag.
    pub(crate) fn step(
        &mut self,
        on: bool,
        off_us: f64,
        price: impl Fn(u32) -> f64,
        common: &mut Common,
    ) -> Option<RequestKey> {
        self.credit_us = (self.credit_us + PRICE * off_us).min(64.0 * off_us);
        if on {
            if self.probe.take().is_some_and(|probe| probe.hits > 0) {
                self.wait = WAIT.0;
            }
            self.waited = 0;
            return None;
        }
        self.waited += 1;
        if let Some(probe) = &mut self.probe {
            let over = probe.steps >= LENGTH || probe.misses >= MISSES + probe.hits;
            if let Some(lag) = self.probed.filter(|_| !over) {
                probe.steps += 1;
                self.credit_us -= price(lag);
                return Some(probe.request);
            }
            self.probe = None;
            self.waited = 0;
            self.wait = (self.wait * 2).min(WAIT.1);
        }
        let (request, lag) = self.cheapest?;
        let cost = price(lag) + (EXPECTED - 1.0) * price(1);
        if self.waited < self.wait || self.credit_us < cost {
            return None;
        }
        self.credit_us -= price(lag);
        self.probe = Some(Probe { request, steps: 1, hits: 0, misses: 0 });
        self.started += 1;
        common.doubt();
        Some(request)
    }

    pub(crate) fn learn(&mut self, key: RequestKey, given: u16, accepted: u16) {
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.request == key) {
            probe.hits += u32::from(accepted > 0);
            probe.misses += u32::from(given > accepted);
        }
    }
}
