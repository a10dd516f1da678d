/// Trials a request's estimate is worth at most: older ones are forgotten.
const WINDOW: f64 = 128.0;
/// Trials of all requests that the common estimate is worth at most.
const COMMON_WINDOW: f64 = 512.0;
/// What the common estimate weighs in a request's own, in trials.
const SHRINK: f64 = 24.0;
/// Tokens after which what was learnt of a request counts half.
const STALE: f64 = 256.0;
/// Trials that everything learnt before counts when a probe begins.
const DOUBT: f64 = 8.0;
/// Nothing known: moderately optimistic.
const PRIOR: (f64, f64) = (0.6, 4.0);

/// A share, as a number of trials and of hits, with forgetting.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    pub(crate) trials: f64,
    pub(crate) hits: f64,
}

impl Share {
    const fn known(share: f64, trials: f64) -> Self {
        Self { trials, hits: share * trials }
    }

    pub(crate) fn value(self) -> f64 {
        self.hits / self.trials.max(1e-9)
    }

    fn add(&mut self, trials: f64, hits: f64, window: f64) {
        self.trials += trials;
        self.hits += hits;
        self.cap(window);
    }

    /// Keeps the share and makes it worth `window` trials at most.
    fn cap(&mut self, window: f64) {
        if self.trials > window {
            self.hits *= window / self.trials;
            self.trials = window;
        }
    }

    fn shrunk(self, common: f64, freshness: f64) -> f64 {
        self.hits.mul_add(freshness, SHRINK * common) / self.trials.mul_add(freshness, SHRINK)
    }
}

/// What was learnt of one request's drafts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Learnt {
    /// Drafts that were reached, and accepted.
    accepted: Share,
    /// Rows that asked for drafts, and got any.
    given: Share,
    /// Its length when it last drafted.
    len: u32,
}

/// What was learnt of all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common {
    pub(crate) accepted: Share,
    /// Trials ever seen, to know a beginner.
    pub(crate) seen: f64,
    given: Share,
    /// Further drafts asked for behind one that was given, and given.
    further: Share,
}

impl Default for Common {
    fn default() -> Self {
        let (share, trials) = PRIOR;
        Self {
            accepted: Share::known(share, trials),
            seen: 0.0,
            given: Share::known(1.0, 2.0),
            further: Share::known(1.0, 2.0),
        }
    }
}

impl Common {
    /// Probability that a draft is given behind one that was.
    pub(crate) fn further(&self) -> f64 {
        self.further.value()
    }

    /// Lets the next trials count much: the world may have changed unseen.
    pub(crate) fn doubt(&mut self) {
        self.accepted.cap(DOUBT);
        self.given.cap(DOUBT);
    }

    /// Learns from a row that asked for `asked` drafts, scored `given` and accepted `accepted` of them.
    pub(crate) fn learn(&mut self, own: &mut Learnt, len: u32, asked: u16, given: u16, accepted: u16) {
        let freshness = own.freshness(len);
        own.accepted.trials *= freshness;
        own.accepted.hits *= freshness;
        own.given.trials *= freshness;
        own.given.hits *= freshness;
        own.len = len;
        // One that is known well says little about the others.
        let weight = 1.0 / (1.0 + own.accepted.trials / 16.0);
        let hits = f64::from(accepted);
        let trials = hits + f64::from(u8::from(accepted < given));
        let gave = f64::from(u8::from(given > 0));
        own.accepted.add(trials, hits, WINDOW);
        own.given.add(1.0, gave, WINDOW);
        self.seen += trials;
        self.accepted.add(weight * trials, weight * hits, COMMON_WINDOW);
        self.given.add(weight, weight * gave, COMMON_WINDOW);
        if given > 0 {
            let short = f64::from(u8::from(given < asked));
            let further = f64::from(given) - 1.0;
            self.further.add(further + short, further, COMMON_WINDOW);
        }
    }
}

impl Learnt {
    /// Lets its next trials count much.
    pub(crate) fn doubt(&mut self) {
        self.accepted.cap(DOUBT);
        self.given.cap(DOUBT);
    }

    fn freshness(&self, len: u32) -> f64 {
        STALE / (STALE + f64::from(len.saturating_sub(self.len)))
    }

    /// How far its acceptance may be from the estimate: a standard deviation of the trials behind it.
    pub(crate) fn deviation(&self, common: &Common, accepted: f64, len: u32) -> f64 {
        let trials = self.accepted.trials.mul_add(self.freshness(len), common.accepted.trials);
        (accepted * (1.0 - accepted) / trials.max(1.0)).max(0.0).sqrt()
    }

    /// Probabilities that a draft of a request of `len` tokens is accepted, and that any is given.
    pub(crate) fn estimate(&self, common: (f64, f64), len: u32) -> (f64, f64) {
        let freshness = self.freshness(len);
        (self.accepted.shrunk(common.0, freshness), self.given.shrunk(common.1, freshness))
    }
}

impl Common {
    /// Probabilities that a draft of an unknown request is accepted, and that any is given.
    pub(crate) fn estimate(&self) -> (f64, f64) {
        (self.accepted.value(), self.given.value())
    }
}
