/// A request's own estimate rests on at most this many trials. When more are seen, older ones are forgotten.
const OWN_WINDOW: f64 = 128.0;
/// The estimate over all requests rests on at most this many trials.
const COMMON_WINDOW: f64 = 512.0;
/// The estimate over all requests counts as this many trials when it is mixed into a request's own.
const COMMON_WEIGHT: f64 = 24.0;
/// After a request has grown by this many tokens without drafting, what was learnt of it counts half.
const HALF_LIFE_TOKENS: f64 = 256.0;
/// When a probe begins, everything learnt before it counts as at most this many trials.
const TRIALS_KEPT_BY_A_PROBE: f64 = 8.0;
/// The share of drafts taken to be accepted before any was seen: moderately optimistic.
const PRIOR_ACCEPTANCE: f64 = 0.6;
/// The number of trials that [`PRIOR_ACCEPTANCE`] counts as.
const PRIOR_TRIALS: f64 = 4.0;

/// A share, kept as the number of trials and the number of hits among them, so that old trials can be forgotten.
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

    /// Keeps the share, but lets it count as `window` trials at most.
    fn cap(&mut self, window: f64) {
        if self.trials > window {
            self.hits *= window / self.trials;
            self.trials = window;
        }
    }

    /// The share after `common` is mixed in; this share's own trials count with the weight `freshness`.
    fn mixed_with(self, common: f64, freshness: f64) -> f64 {
        self.hits.mul_add(freshness, COMMON_WEIGHT * common) / self.trials.mul_add(freshness, COMMON_WEIGHT)
    }
}

/// How likely the next drafts of a request are to exist and to be accepted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    /// The probability that a draft is accepted if all drafts before it were.
    pub(crate) accepted: f64,
    /// The probability that the proposer gives any draft when it is asked.
    pub(crate) given: f64,
}

/// What was learnt of one request's drafts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Learnt {
    /// One trial is a draft whose predecessors were all accepted; it is a hit if the draft was accepted too.
    accepted: Share,
    /// One trial is a row that asked for drafts; it is a hit if the proposer gave any.
    given: Share,
    /// The request's length in tokens when it last drafted.
    len: u32,
}

/// What was learnt of the drafts of all requests together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common {
    /// Trials and hits are counted as in [`Learnt::accepted`].
    pub(crate) accepted: Share,
    /// The number of trials ever seen. A control that has seen few is a beginner and wakes few requests at a time.
    pub(crate) seen: f64,
    given: Share,
    /// One trial is a further draft that was asked for behind a given one; it is a hit if that draft was given too.
    further: Share,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            accepted: Share::known(PRIOR_ACCEPTANCE, PRIOR_TRIALS),
            seen: 0.0,
            given: Share::known(1.0, 2.0),
            further: Share::known(1.0, 2.0),
        }
    }
}

impl Common {
    /// The probability that the proposer gives a draft behind one that it gave.
    pub(crate) fn further(&self) -> f64 {
        self.further.value()
    }

    /// Lowers the weight of what was learnt so far, because acceptance may have changed while nothing drafted.
    pub(crate) fn doubt(&mut self) {
        self.accepted.cap(TRIALS_KEPT_BY_A_PROBE);
        self.given.cap(TRIALS_KEPT_BY_A_PROBE);
    }

    /// Learns from a row that asked for `asked` drafts, scored `given` of them and accepted `accepted`. `own` is what
    /// was learnt of the row's request, and `len` is that request's length in tokens.
    pub(crate) fn learn(&mut self, own: &mut Learnt, len: u32, asked: u16, given: u16, accepted: u16) {
        let freshness = own.freshness(len);
        own.accepted.trials *= freshness;
        own.accepted.hits *= freshness;
        own.given.trials *= freshness;
        own.given.hits *= freshness;
        own.len = len;
        // A request that is known well says little about the others, so its trials weigh less in the common estimate.
        let weight = 1.0 / (1.0 + own.accepted.trials / 16.0);
        let hits = f64::from(accepted);
        let trials = hits + f64::from(u8::from(accepted < given));
        let gave = f64::from(u8::from(given > 0));
        own.accepted.add(trials, hits, OWN_WINDOW);
        own.given.add(1.0, gave, OWN_WINDOW);
        self.seen += trials;
        self.accepted.add(weight * trials, weight * hits, COMMON_WINDOW);
        self.given.add(weight, weight * gave, COMMON_WINDOW);
        if given > 0 {
            let short = f64::from(u8::from(given < asked));
            let further = f64::from(given) - 1.0;
            self.further.add(further + short, further, COMMON_WINDOW);
        }
    }

    /// What to expect of a request of which nothing is known.
    pub(crate) fn estimate(&self) -> Estimate {
        Estimate { accepted: self.accepted.value(), given: self.given.value() }
    }
}

impl Learnt {
    /// Lowers the weight of what was learnt so far, so that the trials of the probe that begins count more.
    pub(crate) fn doubt(&mut self) {
        self.accepted.cap(TRIALS_KEPT_BY_A_PROBE);
        self.given.cap(TRIALS_KEPT_BY_A_PROBE);
    }

    /// The weight, from 0 to 1, of what was learnt of a request that is now `len` tokens long.
    fn freshness(&self, len: u32) -> f64 {
        HALF_LIFE_TOKENS / (HALF_LIFE_TOKENS + f64::from(len.saturating_sub(self.len)))
    }

    /// The standard error of the estimated acceptance `accepted`, from the number of trials behind it.
    pub(crate) fn deviation(&self, common: &Common, accepted: f64, len: u32) -> f64 {
        let trials = self.accepted.trials.mul_add(self.freshness(len), common.accepted.trials);
        (accepted * (1.0 - accepted) / trials.max(1.0)).max(0.0).sqrt()
    }

    /// What to expect of this request at a length of `len` tokens, given what all requests showed.
    pub(crate) fn estimate(&self, common: Estimate, len: u32) -> Estimate {
        let freshness = self.freshness(len);
        Estimate {
            accepted: self.accepted.mixed_with(common.accepted, freshness),
            given: self.given.mixed_with(common.given, freshness),
        }
    }
}
