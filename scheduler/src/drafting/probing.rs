use crate::RequestKey;

/// The share of the time without drafts that is set aside for probes.
const RESERVED_SHARE: f64 = 0.006;
/// The very first probe, when nothing is known of any request, may take this share of the time its request has left.
const FIRST_PROBE_SHARE: f64 = 0.03;
/// At least this many steps lie between two probes.
const WAIT_MIN: u32 = 16;
/// After probes that failed, at most this many steps lie between two probes.
const WAIT_MAX: u32 = 512;
/// A probe lasts at most this many steps.
const LENGTH: u32 = 64;
/// A probe fails when it has lost as much time as this many of its steps take.
const LOSS: f64 = 2.5;
/// The reserve begins with the time of this many steps without drafts.
const START: f64 = 2.0;
/// The reserve holds at most the time of this many steps without drafts.
const RESERVE_MAX: f64 = 16.0;
/// A probe that fails is expected to take this many steps.
const EXPECTED: f64 = 3.0;
/// A request is probed only if at least this many tokens of it are still to come, because fewer can't repay a probe.
const LEFT: u32 = 8;
/// A request is probed only if its proposer lags by at most this many tokens for each token still to come: catching up
/// costs more than a probe could win otherwise.
const BEHIND: u32 = 16;
/// At most this many requests are probed at once.
const WIDTH: usize = 8;

/// A request that may be probed.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    request: RequestKey,
    /// The number of tokens whose KV the proposer lacks.
    lag: u32,
    /// The number of tokens still to come.
    left: u32,
}

/// A probe in progress.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// The requests being probed. Unused places hold the default key, which names no request.
    requests: [RequestKey; WIDTH],
    steps: u32,
    /// The number of drafts accepted.
    hits: u32,
    /// The number of rows that had a draft rejected.
    misses: u32,
    /// Microseconds saved by accepted drafts, less the microseconds that drafting took. Catching up at the start is not
    /// counted.
    won_us: f64,
}

/// What a step takes without drafts, and what drafts add.
pub(crate) struct Prices<F> {
    /// Microseconds of the step without drafts.
    pub(crate) off_us: f64,
    /// The number of decode rows.
    pub(crate) rows: u32,
    /// The number of drafts that fit the token budget.
    pub(crate) room: u32,
    /// The microseconds that drafts add, by the number of requests that get one and of tokens that the proposer reads.
    pub(crate) draft_us: F,
}

/// Requests being probed that decode in the step being planned.
#[derive(Clone, Copy, Debug, Default)]
struct Probed {
    requests: u32,
    /// The sum of their lags in tokens, each at least 1.
    lags: u32,
}

/// Tries a draft now and then while none pays, so that a better acceptance is noticed.
///
/// While drafts are off, a fixed share (0.6 %) of the elapsed time is set aside. A probe (drafting for a few requests to
/// see whether acceptance has improved) may start once that reserve covers its expected loss; time that it saves is
/// added to the reserve. A probe keeps its requests as long as it does not lose time, because catching up with new ones
/// is what costs most. It takes the number of requests that makes one trial cheapest, since they share the proposer's
/// forwards. After a probe that failed, the next one waits twice as long.
#[derive(Clone, Debug)]
pub(crate) struct Probing {
    probe: Option<Probe>,
    /// Microseconds set aside for probes. `None` before the first step.
    reserve_us: Option<f64>,
    /// Microseconds of a step without drafts.
    off_us: f64,
    /// Microseconds that one accepted draft saves.
    token_us: f64,
    /// The number of steps since the last probe.
    waited: u32,
    /// The number of steps after which the next probe is due.
    wait: u32,
    /// Whether a probe is due but the reserve does not cover it yet.
    saves: bool,
    /// The number of probes begun.
    started: u64,
    /// The requests whose proposer lags least, in ascending order of the lag.
    cheapest: [Candidate; WIDTH],
    num_cheapest: usize,
    /// The requests being probed that decode in this step.
    probed: Probed,
}

impl Default for Probing {
    fn default() -> Self {
        Self {
            probe: None,
            reserve_us: None,
            off_us: 0.0,
            token_us: 0.0,
            waited: 0,
            wait: WAIT_MIN,
            saves: false,
            started: 0,
            cheapest: Default::default(),
            num_cheapest: 0,
            probed: Probed::default(),
        }
    }
}

impl Probing {
    /// The number of probes begun.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    /// Ends the probe in progress.
    pub(crate) fn stop(&mut self) {
        self.probe = None;
    }

    /// Begins the decision for a step.
    pub(crate) fn begin(&mut self) {
        (self.num_cheapest, self.probed) = (0, Probed::default());
    }

    /// Considers a decoding request for a probe: the proposer lags by `lag` tokens, and `left` tokens are still to come.
    pub(crate) fn consider(&mut self, request: RequestKey, lag: u32, left: u32) {
        if self.requests().any(|probed| probed == request) {
            self.probed.requests += 1;
            self.probed.lags += lag.max(1);
        }
        if left < LEFT + lag / BEHIND {
            return;
        }
        let mut at = self.num_cheapest;
        if at == WIDTH {
            if self.cheapest[WIDTH - 1].lag <= lag {
                return;
            }
            at -= 1;
        }
        while at > 0 && self.cheapest[at - 1].lag > lag {
            self.cheapest[at] = self.cheapest[at - 1];
            at -= 1;
        }
        self.cheapest[at] = Candidate { request, lag, left };
        self.num_cheapest = (self.num_cheapest + 1).min(WIDTH);
    }

    /// Lets a step without drafts pass like the one before it. Returns `false` when a probe is in progress or due.
    pub(crate) fn rest(&mut self) -> bool {
        let due = self.started == 0 || self.waited + 1 >= self.wait;
        let (Some(reserve), None) = (&mut self.reserve_us, &self.probe) else {
            return false;
        };
        if due && !self.saves {
            return false;
        }
        self.waited += 1;
        *reserve = (*reserve + RESERVED_SHARE * self.off_us).min(RESERVE_MAX * self.off_us);
        true
    }

    /// Decides whether this step belongs to a probe. `on` says whether drafts pay in this step anyway. If it belongs to
    /// one, [`requests`](Self::requests) names the requests that get a draft.
    pub(crate) fn step<F: Fn(u32, u32) -> f64>(&mut self, on: bool, prices: &Prices<F>) -> ProbeStep {
        self.off_us = prices.off_us;
        self.saves = false;
        self.token_us = prices.off_us / f64::from(prices.rows.max(1));
        let reserve = self.reserve_us.get_or_insert(START * prices.off_us);
        *reserve = (*reserve + RESERVED_SHARE * prices.off_us).min(RESERVE_MAX * prices.off_us);
        if on {
            if self.probe.take().is_some_and(|probe| probe.hits > 0) {
                self.wait = WAIT_MIN;
            }
            self.waited = 0;
            return ProbeStep::None;
        }
        self.waited += 1;
        if let Some(probe) = &mut self.probe {
            let Probed { requests, lags } = self.probed;
            if requests > prices.room {
                return ProbeStep::None;
            }
            let step_us = (prices.draft_us)(requests, requests);
            let lost = probe.won_us < -LOSS * step_us;
            // A probe whose drafts are mostly accepted, but which loses time, may pay once more requests share the
            // proposer's forwards: it goes on while the reserve lasts.
            let promising = probe.hits > 4 * probe.misses;
            let over = probe.steps >= LENGTH || (lost && (!promising || *reserve < step_us));
            if requests > 0 && !over {
                probe.steps += 1;
                probe.won_us -= step_us;
                *reserve -= (prices.draft_us)(requests, lags);
                return ProbeStep::Goes;
            }
            self.probe = None;
            self.waited = 0;
            self.wait = if promising { WAIT_MIN } else { (self.wait * 2).min(WAIT_MAX) };
        }
        if self.started > 0 && self.waited < self.wait {
            return ProbeStep::None;
        }
        self.start(prices)
    }

    /// Starts a probe if a request is worth one and the reserve covers it.
    fn start<F: Fn(u32, u32) -> f64>(&mut self, prices: &Prices<F>) -> ProbeStep {
        let (Some(reserve), Some(first)) = (&mut self.reserve_us, self.cheapest[..self.num_cheapest].first())
        else {
            return ProbeStep::None;
        };
        if self.started == 0 {
            *reserve = reserve.max(FIRST_PROBE_SHARE * f64::from(first.left) * prices.off_us);
        }
        let most = self.num_cheapest.min(prices.room as usize);
        let mut lags = 0;
        let mut best: Option<NextProbe> = None;
        for (one, count) in self.cheapest[..most].iter().zip(1u32..) {
            lags += one.lag.max(1);
            let step_us = (prices.draft_us)(count, count);
            let start_us = (prices.draft_us)(count, lags);
            let trial_us = (start_us + (EXPECTED - 1.0) * step_us) / f64::from(count);
            let paid = start_us + (EXPECTED - 1.0) * step_us <= *reserve;
            if paid && best.is_none_or(|best| trial_us < best.trial_us) {
                best = Some(NextProbe { trial_us, count, start_us, step_us });
            }
        }
        let Some(NextProbe { count, start_us, step_us, .. }) = best else {
            self.saves = true;
            return ProbeStep::None;
        };
        *reserve -= start_us;
        let mut requests = [RequestKey::default(); WIDTH];
        for (request, one) in requests.iter_mut().zip(&self.cheapest[..count as usize]) {
            *request = one.request;
        }
        self.probe = Some(Probe { requests, steps: 1, hits: 0, misses: 0, won_us: -step_us });
        self.started += 1;
        ProbeStep::Begins
    }

    /// The requests being probed. Some of them may have finished since.
    pub(crate) fn requests(&self) -> impl Iterator<Item = RequestKey> {
        self.probe.into_iter().flat_map(|probe| probe.requests).filter(|&key| key != RequestKey::default())
    }

    /// Learns that a row of the request `key` was given `given` drafts, of which `accepted` were accepted.
    pub(crate) fn learn(&mut self, key: RequestKey, given: u16, accepted: u16) {
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.requests.contains(&key)) {
            let won = f64::from(accepted) * self.token_us;
            probe.hits += u32::from(accepted);
            probe.misses += u32::from(accepted < given);
            probe.won_us += won;
            self.reserve_us = self.reserve_us.map(|reserve| reserve + won);
        }
    }
}

/// A probe of `count` requests that could be started.
#[derive(Clone, Copy)]
struct NextProbe {
    count: u32,
    /// Expected microseconds that the probe takes for each of its requests.
    trial_us: f64,
    /// Microseconds of its first step, in which the proposer catches up.
    start_us: f64,
    /// Microseconds of each later step.
    step_us: f64,
}

/// Whether a step belongs to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeStep {
    /// It belongs to none.
    None,
    /// It is the first step of a probe.
    Begins,
    /// It continues a probe.
    Goes,
}
