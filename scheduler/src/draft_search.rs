use crate::live_curve::LiveCurve;

/// Steps of acceptance that requests are told apart by.
const LEVELS: usize = 24;
/// Classes of what it takes to wake a request's drafts, with what they do to its place in the order.
const CLASSES: [f64; 3] = [1.0, 0.7, 0.3];

/// Requests that are alike.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    requests: u32,
    /// Drafts given of one asked for, expected, of all together.
    given: f64,
    /// Sum of acceptances.
    accepted: f64,
    /// Sum of context tokens.
    context: f64,
    /// Microseconds a step of catching up, written off over what is left of each.
    wake_us: f64,
    /// Drafts chosen.
    depth: u16,
    /// How many of them get one more.
    more: u32,
    /// While candidates are listed, of each request: acceptance, its power, drafts given at the depth that is next, and
    /// context.
    listing: (f64, f64, f64, f64),
}

/// One more draft for each request of a group.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    group: u16,
    depth: u16,
    requests: u32,
    rows: f64,
    tokens: f64,
    /// Microseconds that grow with the rows alone: context, catching up.
    us: f64,
}

/// The step as it is without drafts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Base {
    /// Rows that decode: each gives a token.
    pub(crate) decode_rows: u32,
    /// Rows of prefills.
    pub(crate) prefill_rows: u32,
    /// Query tokens times context tokens of the decode rows.
    pub(crate) context: f64,
    /// Microseconds besides the target's forward.
    pub(crate) overhead_us: f64,
    /// Drafts that fit the budget beside everyone's rows.
    pub(crate) room: u32,
}

/// What proposing costs and gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proposing<'a> {
    pub(crate) target: &'a LiveCurve,
    pub(crate) draft: &'a LiveCurve,
    /// Microseconds of proposing at all.
    pub(crate) per_step_us: f64,
    /// Probability of a draft behind one that was given.
    pub(crate) further: f64,
}

/// Expected tokens a microsecond of a step, without drafts and with the best found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) off: f64,
    pub(crate) best: f64,
    /// Microseconds of the step without drafts, prefills not counted.
    pub(crate) off_us: f64,
}

#[derive(Clone, Copy)]
struct Best {
    depth: u16,
    at: usize,
    /// Requests of the last candidate that take part.
    requests: u32,
}

/// Finds the draft lengths that give the most expected tokens a microsecond.
///
/// For every greatest depth d it walks "one more draft for this group", those with the better odds first, and keeps
/// the best prefix of that walk; where the target's cost has a corner within a group, a part of the group. With g
/// groups occupied and lengths up to k that is O(g k^2) look-ups however many requests there are.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    max: u16,
    groups: Vec<Group>,
    /// Those that have requests.
    occupied: Vec<u16>,
    /// (group, depth) of all there can be, the better odds first.
    order: Vec<(u16, u16)>,
    /// Places of each group in that order: a row of bits each.
    places: Vec<u64>,
    /// Places of the occupied groups.
    listed: Vec<u64>,
    candidates: Vec<Candidate>,
    /// Expected tokens of all candidates, by depth.
    tokens_at: Vec<f64>,
    /// Rows and microseconds of the proposer's forwards, by depth.
    forwards: Vec<(f64, f64)>,
    /// The target's calibrated sizes.
    corners: Vec<f64>,
}

impl Search {
    pub(crate) fn new(max: u16, target: &LiveCurve) -> Self {
        let groups = LEVELS * CLASSES.len();
        let mut order: Vec<(u16, u16)> =
            (0..groups as u16).flat_map(|group| (1..=max).map(move |depth| (group, depth))).collect();
        let odds = |&(group, depth): &(u16, u16)| {
            let (level, class) = (usize::from(group) / CLASSES.len(), usize::from(group) % CLASSES.len());
            let middle = (level as f64 + 0.5) / LEVELS as f64;
            CLASSES[class] * middle.powi(i32::from(depth))
        };
        order.sort_by(|a, b| odds(b).total_cmp(&odds(a)).then(a.cmp(b)));
        let words = order.len().div_ceil(64);
        let mut places = vec![0; words * groups];
        for (at, &(group, _)) in order.iter().enumerate() {
            places[usize::from(group) * words + at / 64] |= 1 << (at % 64);
        }
        Self {
            max,
            groups: vec![Group::default(); groups],
            occupied: Vec::with_capacity(groups),
            places,
            listed: vec![0; words],
            candidates: Vec::with_capacity(order.len()),
            order,
            tokens_at: vec![0.0; usize::from(max) + 1],
            forwards: vec![(0.0, 0.0); usize::from(max) + 1],
            corners: target.sizes().collect(),
        }
    }

    pub(crate) fn clear(&mut self) {
        for group in self.occupied.drain(..) {
            self.groups[usize::from(group)] = Group::default();
        }
    }

    /// Adds a request that may draft; gives its group. `wake` is what has to be caught up with, as rows a step over
    /// what is left of it, and as microseconds.
    pub(crate) fn add(&mut self, (accepted, given): (f64, f64), context: u32, wake: (f64, f64)) -> u16 {
        let level = ((accepted * LEVELS as f64) as usize).min(LEVELS - 1);
        let class = if wake.0 <= 0.0 { 0 } else { 1 + usize::from(wake.0 > 1.0) };
        let at = level * CLASSES.len() + class;
        let group = &mut self.groups[at];
        if group.requests == 0 {
            self.occupied.push(at as u16);
        }
        group.requests += 1;
        group.given += given;
        group.accepted += accepted;
        group.context += f64::from(context);
        group.wake_us += wake.1;
        at as u16
    }

    /// Chooses; [`take`](Self::take) then tells each request its length. Drafts have to beat none by the share `hysteresis`.
    pub(crate) fn choose(&mut self, base: &Base, costs: Proposing<'_>, hysteresis: f64) -> Rates {
        self.list(costs);
        let prefill = f64::from(base.prefill_rows);
        let decode = f64::from(base.decode_rows);
        let context_us = base.context * (costs.target.us_per_context() + costs.target.us_per_read());
        let off_us = costs.target.us(decode) + context_us + base.overhead_us;
        // A prefill's time is spent whatever is drafted: only what drafts add to it counts.
        let sunk = costs.target.us(decode + prefill) - costs.target.us(decode);
        let fixed = context_us + base.overhead_us + costs.per_step_us - sunk;
        let rates_off = decode / off_us.max(1e-9);
        let mut rates = Rates { off: rates_off, best: rates_off, off_us };
        let mut best = None;
        let mut bar = rates_off * (1.0 + hysteresis);
        let start = decode + prefill;
        // Tokens if every draft up to a depth were asked for.
        let mut most = decode;
        for depth in 1..=self.max {
            self.forwards.fill((0.0, 0.0));
            let (mut rows, mut tokens, mut us) = (start, decode, fixed);
            let mut corner = self.corners.partition_point(|&size| size <= rows);
            let mut left = base.room;
            let mut deepest = 0;
            most += self.tokens_at[usize::from(depth)];
            for (at, one) in self.candidates.iter().enumerate() {
                if one.depth > depth {
                    continue;
                }
                // Who asks takes its place in the budget, whatever it is given then.
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
                    let drafting = costs.draft.us(forward.0 + share * one.rows) - forward.1;
                    let total = costs.target.us(rows + share * one.rows) + us + share * one.us + drafting;
                    let tokens = tokens + share * one.tokens;
                    if tokens > bar * total.max(1e-9) {
                        bar = tokens / total.max(1e-9);
                        best = Some(Best { depth, at, requests: part as u32 });
                    }
                }
                let drafted = costs.draft.us(forward.0 + whole);
                us += share * one.us + drafted - forward.1;
                *forward = (forward.0 + whole, drafted);
                rows += whole;
                tokens += share * one.tokens;
                let total = (costs.target.us(rows) + us).max(1e-9);
                if tokens > bar * total {
                    bar = tokens / total;
                    best = Some(Best { depth, at, requests: asked });
                }
                // All that could follow, for nothing, would not be enough.
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

    /// The length of a request of `group`; called once for each.
    pub(crate) fn take(&mut self, group: u16) -> u16 {
        let group = &mut self.groups[usize::from(group)];
        let more = group.more > 0;
        group.more -= u32::from(more);
        group.depth + u16::from(more)
    }

    fn list(&mut self, costs: Proposing<'_>) {
        self.candidates.clear();
        let words = self.listed.len();
        self.listed.fill(0);
        self.tokens_at.fill(0.0);
        for &at in &self.occupied {
            let places = &self.places[usize::from(at) * words..][..words];
            self.listed.iter_mut().zip(places).for_each(|(listed, places)| *listed |= places);
            let group = &mut self.groups[usize::from(at)];
            let requests = f64::from(group.requests);
            let accepted = group.accepted / requests;
            group.listing = (accepted, accepted, group.given, group.context / requests);
        }
        let per_context = costs.target.us_per_context();
        for (word, &listed) in self.listed.iter().enumerate() {
            let mut listed = listed;
            while listed != 0 {
                let (at, depth) = self.order[64 * word + listed.trailing_zeros() as usize];
                listed &= listed - 1;
                let group = &mut self.groups[usize::from(at)];
                // Within a group the depths come in their order.
                let (accepted, power, rows, context) = group.listing;
                group.listing = (accepted, power * accepted, rows * costs.further, context);
                let tokens = rows * power;
                self.tokens_at[usize::from(depth)] += tokens;
                self.candidates.push(Candidate {
                    group: at,
                    depth,
                    requests: group.requests,
                    rows: rows.max(1e-6),
                    tokens,
                    us: rows * context * per_context + if depth == 1 { group.wake_us } else { 0.0 },
                });
            }
        }
    }

    fn assign(&mut self, best: Best) {
        for one in self.candidates[..=best.at].iter().filter(|one| one.depth <= best.depth) {
            let group = &mut self.groups[usize::from(one.group)];
            (group.depth, group.more) = (one.depth, 0);
        }
        let last = self.candidates[best.at];
        let group = &mut self.groups[usize::from(last.group)];
        if best.requests < last.requests {
            (group.depth, group.more) = (last.depth - 1, best.requests);
        }
    }
}
