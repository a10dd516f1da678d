use super::acceptance::Estimate;
use super::live_curve::LiveCurve;

/// Requests are told apart by their estimated acceptance, from 0 to 1, in this many equal levels.
const LEVELS: usize = 24;
/// Requests are told apart by the cost of waking them too: none, up to one row a step, or more. The odds of a class
/// are multiplied by its factor here, so that requests that are dear to wake are tried later.
const WAKE_FACTORS: [f64; 3] = [1.0, 0.7, 0.3];

/// Requests of about the same acceptance and cost of waking: they are priced as one.
#[derive(Clone, Copy, Debug, Default)]
struct Cohort {
    /// The number of requests.
    requests: u32,
    /// The expected number of drafts given if each request asks for one.
    given: f64,
    /// The sum of the requests' acceptances.
    accepted: f64,
    /// The sum of the requests' context tokens.
    context: f64,
    /// Microseconds of catching up with all of them, a step: see [`Wake`].
    wake_us: f64,
    /// The number of drafts chosen for each request.
    depth: u16,
    /// The number of requests that get one draft more.
    more: u32,
    listing: Listing,
}

/// The values of a cohort while its candidates are listed, depth by depth.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    /// The mean acceptance of its requests.
    accepted: f64,
    /// The probability that a draft of the next depth stands: the acceptance to the power of the depth.
    power: f64,
    /// The expected number of drafts given at the next depth, of all requests together.
    rows: f64,
    /// The mean context of its requests, in tokens.
    context: f64,
}

/// One more draft for each request of a cohort.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    cohort: u16,
    /// The number of drafts that each request then has.
    depth: u16,
    /// The number of requests in the cohort.
    requests: u32,
    /// The expected token rows that it adds to the target's forward.
    rows: f64,
    /// The expected tokens that it gives.
    tokens: f64,
    /// The microseconds that are proportional to its rows: reading the context, and catching up.
    us: f64,
}

/// The step as it would be without drafts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Base {
    /// The number of decode rows. Each gives one token.
    pub(crate) decode_rows: u32,
    /// The number of token rows that prefill.
    pub(crate) prefill_rows: u32,
    /// The number of (query token, context token) pairs of the decode rows.
    pub(crate) context: f64,
    /// Microseconds that the step takes besides the target's forward.
    pub(crate) overhead_us: f64,
    /// The number of drafts that fit the token budget beside all rows.
    pub(crate) room: u32,
}

/// What drafts cost, and how reliably the proposer gives them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProposalCosts<'a> {
    /// A forward of the target, by its token rows.
    pub(crate) target: &'a LiveCurve,
    /// A forward of the proposer, by the requests that draft.
    pub(crate) draft: &'a LiveCurve,
    /// Microseconds that a step with any draft takes for proposing, whatever the number of requests.
    pub(crate) per_step_us: f64,
    /// The probability that the proposer gives a draft behind one that it gave.
    pub(crate) further: f64,
}

/// The request's cost of waking, spread over the steps it has left; see [`DraftControl`](super::DraftControl).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wake {
    /// Tokens that the proposer has to catch up with, a step.
    pub(crate) rows: f64,
    /// Microseconds that this takes, a step.
    pub(crate) us: f64,
}

/// The expected throughput of a step, in tokens per microsecond.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// Without drafts.
    pub(crate) off: f64,
    /// With the best lengths that were found; equal to `off` where no drafts are best.
    pub(crate) best: f64,
    /// Microseconds of the step without drafts and without prefills.
    pub(crate) off_us: f64,
}

/// The best choice found so far: every candidate up to `at` whose depth is at most `depth`.
#[derive(Clone, Copy)]
struct Best {
    depth: u16,
    /// The index of the last candidate that takes part.
    at: usize,
    /// The number of its requests that take part.
    requests: u32,
}

/// One forward of the proposer.
#[derive(Clone, Copy, Debug, Default)]
struct Forward {
    rows: f64,
    us: f64,
}

/// Finds the draft lengths that give the most expected tokens a microsecond.
///
/// For every greatest depth d it walks over the candidates ("one more draft for each request of this cohort"), those
/// with the better odds first, and keeps the best prefix of that walk. Where the target's cost curve has a corner
/// inside a cohort, a part of the cohort is considered too. With c cohorts in use and lengths up to k, that takes
/// O(c k^2) look-ups, whatever the number of requests.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    max: u16,
    cohorts: Vec<Cohort>,
    /// The cohorts that have requests.
    occupied: Vec<u16>,
    /// All pairs of cohort and depth, those with the better odds first.
    order: Vec<(u16, u16)>,
    /// For each cohort a row of bits: the positions in `order` that belong to it.
    places: Vec<u64>,
    /// The positions in `order` of all occupied cohorts.
    listed: Vec<u64>,
    candidates: Vec<Candidate>,
    /// The expected tokens of all candidates of a depth, by depth.
    tokens_at: Vec<f64>,
    /// The proposer's forwards, by depth.
    forwards: Vec<Forward>,
    /// The target's calibrated sizes in token rows, where its cost curve changes its slope.
    corners: Vec<f64>,
}

impl Search {
    pub(crate) fn new(max: u16, target: &LiveCurve) -> Self {
        let cohorts = LEVELS * WAKE_FACTORS.len();
        let mut order: Vec<(u16, u16)> =
            (0..cohorts as u16).flat_map(|cohort| (1..=max).map(move |depth| (cohort, depth))).collect();
        let odds = |&(cohort, depth): &(u16, u16)| {
            let (level, class) =
                (usize::from(cohort) / WAKE_FACTORS.len(), usize::from(cohort) % WAKE_FACTORS.len());
            let middle = (level as f64 + 0.5) / LEVELS as f64;
            WAKE_FACTORS[class] * middle.powi(i32::from(depth))
        };
        order.sort_by(|a, b| odds(b).total_cmp(&odds(a)).then(a.cmp(b)));
        let words = order.len().div_ceil(64);
        let mut places = vec![0; words * cohorts];
        for (at, &(cohort, _)) in order.iter().enumerate() {
            places[usize::from(cohort) * words + at / 64] |= 1 << (at % 64);
        }
        Self {
            max,
            cohorts: vec![Cohort::default(); cohorts],
            occupied: Vec::with_capacity(cohorts),
            places,
            listed: vec![0; words],
            candidates: Vec::with_capacity(order.len()),
            order,
            tokens_at: vec![0.0; usize::from(max) + 1],
            forwards: vec![Forward::default(); usize::from(max) + 1],
            corners: target.sizes().collect(),
        }
    }

    pub(crate) fn clear(&mut self) {
        for cohort in self.occupied.drain(..) {
            self.cohorts[usize::from(cohort)] = Cohort::default();
        }
    }

    /// Adds a request that may draft and has `context` tokens of context. Returns its cohort.
    pub(crate) fn add(&mut self, estimate: Estimate, context: u32, wake: Wake) -> u16 {
        let level = ((estimate.accepted * LEVELS as f64) as usize).min(LEVELS - 1);
        let class = if wake.rows <= 0.0 { 0 } else { 1 + usize::from(wake.rows > 1.0) };
        let at = level * WAKE_FACTORS.len() + class;
        let cohort = &mut self.cohorts[at];
        if cohort.requests == 0 {
            self.occupied.push(at as u16);
        }
        cohort.requests += 1;
        cohort.given += estimate.given;
        cohort.accepted += estimate.accepted;
        cohort.context += f64::from(context);
        cohort.wake_us += wake.us;
        at as u16
    }

    /// Chooses the lengths, which [`take`](Self::take) then gives out. The throughput with drafts must be greater than
    /// without by the share `hysteresis`.
    pub(crate) fn choose(&mut self, base: &Base, costs: ProposalCosts<'_>, hysteresis: f64) -> Rates {
        self.list(costs);
        let prefill = f64::from(base.prefill_rows);
        let decode = f64::from(base.decode_rows);
        let context_us = base.context * (costs.target.us_per_context() + costs.target.us_per_read());
        let off_us = costs.target.us(decode) + context_us + base.overhead_us;
        // The time of the prefills is spent with and without drafts, so only what drafts add to it counts.
        let sunk = costs.target.us(decode + prefill) - costs.target.us(decode);
        let fixed = context_us + base.overhead_us + costs.per_step_us - sunk;
        let rates_off = decode / off_us.max(1e-9);
        let mut rates = Rates { off: rates_off, best: rates_off, off_us };
        let mut best = None;
        let mut bar = rates_off * (1.0 + hysteresis);
        let start = decode + prefill;
        // The expected tokens if every draft up to the current depth were asked for.
        let mut most = decode;
        for depth in 1..=self.max {
            self.forwards.fill(Forward::default());
            let (mut rows, mut tokens, mut us) = (start, decode, fixed);
            let mut corner = self.corners.partition_point(|&size| size <= rows);
            let mut left = base.room;
            let mut deepest = 0;
            most += self.tokens_at[usize::from(depth)];
            for (at, one) in self.candidates.iter().enumerate() {
                if one.depth > depth {
                    continue;
                }
                // A request that asks takes a place in the token budget, whether or not it is given a draft.
                if left == 0 {
                    break;
                }
                let asked = one.requests.min(left);
                left -= asked;
                deepest = deepest.max(one.depth);
                let forward = &mut self.forwards[usize::from(one.depth)];
                let share = f64::from(asked) / f64::from(one.requests);
                let whole = share * one.rows;
                while let Some(&size) = self.corners.get(corner).filter(|&&size| size < rows + whole) {
                    corner += 1;
                    let part = ((size - rows) / one.rows * f64::from(one.requests)).floor();
                    let share = part / f64::from(one.requests);
                    if part < 1.0 {
                        continue;
                    }
                    let drafting = costs.draft.us(forward.rows + share * one.rows) - forward.us;
                    let total = costs.target.us(rows + share * one.rows) + us + share * one.us + drafting;
                    let tokens = tokens + share * one.tokens;
                    if tokens > bar * total.max(1e-9) {
                        bar = tokens / total.max(1e-9);
                        best = Some(Best { depth, at, requests: part as u32 });
                    }
                }
                let drafted = costs.draft.us(forward.rows + whole);
                us += share * one.us + drafted - forward.us;
                *forward = Forward { rows: forward.rows + whole, us: drafted };
                rows += whole;
                tokens += share * one.tokens;
                let total = (costs.target.us(rows) + us).max(1e-9);
                if tokens > bar * total {
                    bar = tokens / total;
                    best = Some(Best { depth, at, requests: asked });
                }
                // Even if every remaining request drafted at no cost, the throughput would not beat `bar`: stop
                // searching.
                if most <= bar * total {
                    break;
                }
            }
            if left == 0 && deepest < depth {
                break;
            }
        }
        if let Some(best) = best {
            rates.best = bar;
            self.assign(best);
        }
        rates
    }

    /// The length of the next request of `cohort`. It must be called once for each request of the cohort.
    pub(crate) fn take(&mut self, cohort: u16) -> u16 {
        let cohort = &mut self.cohorts[usize::from(cohort)];
        let more = cohort.more > 0;
        cohort.more -= u32::from(more);
        cohort.depth + u16::from(more)
    }

    /// Lists the candidates of all occupied cohorts, those with the better odds first.
    fn list(&mut self, costs: ProposalCosts<'_>) {
        self.candidates.clear();
        let words = self.listed.len();
        self.listed.fill(0);
        self.tokens_at.fill(0.0);
        for &at in &self.occupied {
            let places = &self.places[usize::from(at) * words..][..words];
            self.listed.iter_mut().zip(places).for_each(|(listed, places)| *listed |= places);
            let cohort = &mut self.cohorts[usize::from(at)];
            let requests = f64::from(cohort.requests);
            let accepted = cohort.accepted / requests;
            cohort.listing =
                Listing { accepted, power: accepted, rows: cohort.given, context: cohort.context / requests };
        }
        let per_context = costs.target.us_per_context();
        for (word, &listed) in self.listed.iter().enumerate() {
            let mut listed = listed;
            while listed != 0 {
                let (at, depth) = self.order[64 * word + listed.trailing_zeros() as usize];
                listed &= listed - 1;
                let cohort = &mut self.cohorts[usize::from(at)];
                // Within a cohort the depths come in ascending order, so each step multiplies once more.
                let Listing { accepted, power, rows, context } = cohort.listing;
                cohort.listing =
                    Listing { power: power * accepted, rows: rows * costs.further, ..cohort.listing };
                let tokens = rows * power;
                self.tokens_at[usize::from(depth)] += tokens;
                self.candidates.push(Candidate {
                    cohort: at,
                    depth,
                    requests: cohort.requests,
                    rows: rows.max(1e-6),
                    tokens,
                    us: rows * context * per_context + if depth == 1 { cohort.wake_us } else { 0.0 },
                });
            }
        }
    }

    /// Writes the best choice into the cohorts.
    fn assign(&mut self, best: Best) {
        for one in self.candidates[..=best.at].iter().filter(|one| one.depth <= best.depth) {
            let cohort = &mut self.cohorts[usize::from(one.cohort)];
            (cohort.depth, cohort.more) = (one.depth, 0);
        }
        let last = self.candidates[best.at];
        let cohort = &mut self.cohorts[usize::from(last.cohort)];
        if best.requests < last.requests {
            (cohort.depth, cohort.more) = (last.depth - 1, best.requests);
        }
    }
}
