use crate::RequestKey;

/// The share of the time that probes may take.
const PRICE: f64 = 0.006;
/// The share of a request's time that its first probe may take while nothing is known of anyone.
const FIRST: f64 = 0.03;
/// Steps between two probes, at least and (after probes that said no) at most.
const WAIT: (u32, u32) = (16, 512);
/// Steps a probe lasts at most.
const LENGTH: u32 = 64;
/// Steps' worth of drafting that a probe may lose before it has said no.
const LOSS: f64 = 2.5;
/// What probes may cost before any credit is earned, in steps.
const START: f64 = 2.0;
/// Steps that a probe that says no is expected to take.
const EXPECTED: f64 = 3.0;
/// Tokens a request must have before it to be worth a probe.
const LEFT: u32 = 8;
/// And for each of them so many that the proposer may be behind.
const BEHIND: u32 = 16;
/// Requests probed at once, at most.
const WIDTH: usize = 8;

/// A request that may be probed.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    request: RequestKey,
    /// Tokens that the proposer is behind.
    lag: u32,
    left: u32,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    requests: [RequestKey; WIDTH],
    steps: u32,
    /// Drafts accepted.
    hits: u32,
    misses: u32,
    /// Time saved by what was accepted, less what the drafts took (catching up at the start not counted).
    won_us: f64,
}

/// The step without drafts, and what drafting costs on top.
pub(crate) struct Prices<F> {
    /// Microseconds without drafts.
    pub(crate) off_us: f64,
    /// Rows that decode.
    pub(crate) rows: u32,
    /// Drafts that fit the budget.
    pub(crate) room: u32,
    /// Microseconds on top, by the requests that get a draft and the tokens that the proposer reads.
    pub(crate) draft_us: F,
}

/// Tries a draft now and then while none pays, so that a better acceptance is noticed.
///
/// Probes are paid from a credit that grows with the time of the steps without drafts; what they win goes back to it.
/// A probe stays with its requests while it does not lose, because it is catching up that costs. It takes as many as
/// make a trial cheapest: a forward of the proposer is shared. After each that said no the next one waits twice as
/// long.
#[derive(Clone, Debug)]
pub(crate) struct Probing {
    probe: Option<Probe>,
    credit_us: Option<f64>,
    /// Microseconds of a step without drafts.
    off_us: f64,
    /// What an accepted draft saves.
    token_us: f64,
    waited: u32,
    wait: u32,
    /// A probe is due and there is no credit for it.
    saves: bool,
    started: u64,
    /// The requests that cost least to wake, the cheapest first.
    cheapest: [Candidate; WIDTH],
    num_cheapest: usize,
    /// Those being probed that are still there: how many, and the sum of their lags.
    probed: (u32, u32),
}

impl Default for Probing {
    fn default() -> Self {
        Self {
            probe: None,
            credit_us: None,
            off_us: 0.0,
            token_us: 0.0,
            waited: 0,
            wait: WAIT.0,
            saves: false,
            started: 0,
            cheapest: Default::default(),
            num_cheapest: 0,
            probed: (0, 0),
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
        (self.num_cheapest, self.probed) = (0, (0, 0));
    }

    /// A request that could be probed: the proposer is `lag` tokens behind, and `left` are to come.
    pub(crate) fn consider(&mut self, request: RequestKey, lag: u32, left: u32) {
        if self.requests().any(|probed| probed == request) {
            self.probed.0 += 1;
            self.probed.1 += lag.max(1);
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

    /// Lets a step without drafts pass like the one before. `false` when a probe goes on or is due.
    pub(crate) fn rest(&mut self) -> bool {
        let due = self.started == 0 || self.waited + 1 >= self.wait;
        let (Some(credit), None) = (&mut self.credit_us, &self.probe) else {
            return false;
        };
        if due && !self.saves {
            return false;
        }
        self.waited += 1;
        *credit = (*credit + PRICE * self.off_us).min(16.0 * self.off_us);
        true
    }

    /// Decides whether this step, in which drafts are `on` or not, is one of a probe, and of a new one.
    /// [`requests`](Self::requests) then names whom to give a draft.
    pub(crate) fn step<F: Fn(u32, u32) -> f64>(&mut self, on: bool, prices: &Prices<F>) -> Step {
        self.off_us = prices.off_us;
        self.saves = false;
        self.token_us = prices.off_us / f64::from(prices.rows.max(1));
        let credit = self.credit_us.get_or_insert(START * prices.off_us);
        *credit = (*credit + PRICE * prices.off_us).min(16.0 * prices.off_us);
        if on {
            if self.probe.take().is_some_and(|probe| probe.hits > 0) {
                self.wait = WAIT.0;
            }
            self.waited = 0;
            return Step::None;
        }
        self.waited += 1;
        if let Some(probe) = &mut self.probe {
            let (requests, lags) = self.probed;
            if requests > prices.room {
                return Step::None;
            }
            let step_us = (prices.draft_us)(requests, requests);
            let lost = probe.won_us < -LOSS * step_us;
            // One that loses alone may pay together with others: then it goes on while there is credit.
            let promising = probe.hits > 4 * probe.misses;
            let over = probe.steps >= LENGTH || (lost && (!promising || *credit < step_us));
            if requests > 0 && !over {
                probe.steps += 1;
                probe.won_us -= step_us;
                *credit -= (prices.draft_us)(requests, lags);
                return Step::Goes;
            }
            self.probe = None;
            self.waited = 0;
            self.wait = if promising { WAIT.0 } else { (self.wait * 2).min(WAIT.1) };
        }
        if self.started > 0 && self.waited < self.wait {
            return Step::None;
        }
        self.start(prices)
    }

    fn start<F: Fn(u32, u32) -> f64>(&mut self, prices: &Prices<F>) -> Step {
        let (Some(credit), Some(first)) = (&mut self.credit_us, self.cheapest[..self.num_cheapest].first())
        else {
            return Step::None;
        };
        if self.started == 0 {
            *credit = credit.max(FIRST * f64::from(first.left) * prices.off_us);
        }
        let most = self.num_cheapest.min(prices.room as usize);
        let (mut lags, mut best): (u32, Option<(f64, u32, f64, f64)>) = (0, None);
        for (one, count) in self.cheapest[..most].iter().zip(1u32..) {
            lags += one.lag.max(1);
            let step_us = (prices.draft_us)(count, count);
            let start_us = (prices.draft_us)(count, lags);
            let trial_us = (start_us + (EXPECTED - 1.0) * step_us) / f64::from(count);
            let paid = start_us + (EXPECTED - 1.0) * step_us <= *credit;
            if paid && best.is_none_or(|(least, ..)| trial_us < least) {
                best = Some((trial_us, count, start_us, step_us));
            }
        }
        let Some((_, count, start_us, step_us)) = best else {
            self.saves = true;
            return Step::None;
        };
        *credit -= start_us;
        let mut requests = [RequestKey::default(); WIDTH];
        for (request, one) in requests.iter_mut().zip(&self.cheapest[..count as usize]) {
            *request = one.request;
        }
        self.probe = Some(Probe { requests, steps: 1, hits: 0, misses: 0, won_us: -step_us });
        self.started += 1;
        Step::Begins
    }

    /// The requests being probed; keys that name none among them.
    pub(crate) fn requests(&self) -> impl Iterator<Item = RequestKey> {
        self.probe.into_iter().flat_map(|probe| probe.requests).filter(|&key| key != RequestKey::default())
    }

    pub(crate) fn learn(&mut self, key: RequestKey, given: u16, accepted: u16) {
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.requests.contains(&key)) {
            let won = f64::from(accepted) * self.token_us;
            probe.hits += u32::from(accepted);
            probe.misses += u32::from(accepted < given);
            probe.won_us += won;
            self.credit_us = self.credit_us.map(|credit| credit + won);
        }
    }
}

/// What a step is to a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    None,
    Begins,
    Goes,
}
