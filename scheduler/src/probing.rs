use crate::RequestKey;

/// The share of the time that probes may take.
const PRICE: f64 = 0.006;
/// The share of a request's time that its first probe may take while nothing is known of anyone.
const FIRST: f64 = 0.03;
/// Steps between two probes, at least and (after probes that said no) at most.
const WAIT: (u32, u32) = (16, 512);
/// Steps a probe lasts at most.
const LENGTH: u32 = 64;
/// Drafts' worth of time that a probe may lose before it has said no.
const LOSS: f64 = 2.5;
/// What probes may cost before any credit is earned, in steps.
const START: f64 = 2.0;
/// Steps that a probe that says no is expected to take.
const EXPECTED: f64 = 3.0;
/// Tokens a request must have before it to be worth a probe.
const LEFT: u32 = 8;

#[derive(Clone, Copy, Debug)]
struct Probe {
    request: RequestKey,
    steps: u32,
    /// Drafts accepted.
    hits: u32,
    /// Time saved by what was accepted, less what the drafts took (catching up at the start not counted).
    won_us: f64,
}

/// Tries a draft now and then while none pays, so that a better acceptance is noticed.
///
/// Probes are paid from a credit that grows with the time of the steps without drafts; what they win goes back to it.
/// A probe stays with one request while it does not lose, because it is catching up that costs. After each that said
/// no the next one waits twice as long.
#[derive(Clone, Debug)]
pub(crate) struct Probing {
    probe: Option<Probe>,
    credit_us: Option<f64>,
    /// What an accepted draft saves.
    token_us: f64,
    waited: u32,
    wait: u32,
    started: u64,
    /// The request that costs least to wake, its lag and what is left of it.
    cheapest: Option<(RequestKey, u32, u32)>,
    /// The lag of the one that is being probed.
    probed: Option<u32>,
}

impl Default for Probing {
    fn default() -> Self {
        Self {
            probe: None,
            credit_us: None,
            token_us: 0.0,
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

    /// Whether the step decided last is the first of a probe.
    pub(crate) fn begins(&self) -> bool {
        self.probe.is_some_and(|probe| probe.steps == 1)
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
        if left >= LEFT && self.cheapest.is_none_or(|(_, least, _)| lag < least) {
            self.cheapest = Some((key, lag, left));
        }
    }

    /// The request to probe in a step that takes `off_us` without drafts. `price` is what a step of a probe costs, by
    /// the lag.
    pub(crate) fn step(
        &mut self,
        on: bool,
        off_us: f64,
        rows: u32,
        price: impl Fn(u32) -> f64,
    ) -> Option<RequestKey> {
        self.token_us = off_us / f64::from(rows.max(1));
        let credit = self.credit_us.get_or_insert(START * off_us);
        *credit = (*credit + PRICE * off_us).min(16.0 * off_us);
        if on {
            if self.probe.take().is_some_and(|probe| probe.hits > 0) {
                self.wait = WAIT.0;
            }
            self.waited = 0;
            return None;
        }
        self.waited += 1;
        if let Some(probe) = &mut self.probe {
            let over = probe.steps >= LENGTH || probe.won_us < -LOSS * price(1);
            if let Some(lag) = self.probed.filter(|_| !over) {
                probe.steps += 1;
                probe.won_us -= price(1);
                *credit -= price(lag);
                return Some(probe.request);
            }
            self.probe = None;
            self.waited = 0;
            self.wait = (self.wait * 2).min(WAIT.1);
        }
        let (request, lag, left) = self.cheapest?;
        let cost = price(lag) + (EXPECTED - 1.0) * price(1);
        if self.started == 0 {
            *credit = credit.max(FIRST * f64::from(left) * off_us);
        }
        if (self.started > 0 && self.waited < self.wait) || *credit < cost {
            return None;
        }
        *credit -= price(lag);
        self.probe = Some(Probe { request, steps: 1, hits: 0, won_us: -price(1) });
        self.started += 1;
        Some(request)
    }

    pub(crate) fn learn(&mut self, key: RequestKey, accepted: u16) {
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.request == key) {
            let won = f64::from(accepted) * self.token_us;
            probe.hits += u32::from(accepted);
            probe.won_us += won;
            self.credit_us = self.credit_us.map(|credit| credit + won);
        }
    }
}
