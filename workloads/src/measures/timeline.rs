use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::replay::StepReport;

/// What happened when, in at most 600 bins of equal width. Bins have 100 ms at first, and are merged in
/// pairs whenever a longer run needs it. Each list has one value per bin. If a server ran the requests, the lists from
/// `prompt_tokens_computed` on are left out, because it does not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Timeline {
    /// The width of a bin in seconds. The first bin begins with the run.
    pub bin_s: f64,
    /// The seconds into the run from which steps were seen: 0, or for a resumed run the start of the first
    /// step after it was resumed. What is counted by step (tokens, running, waiting, KV, preemptions,
    /// drafts) is not known before this, and 0 there. The bin that contains this moment has means over the
    /// part that was seen.
    #[serde(default)]
    pub observed_from_s: f64,
    /// The number of requests whose intended arrival lies in the bin.
    pub arrivals: Vec<u64>,
    /// The number of requests that finished.
    pub finished: Vec<u64>,
    /// The number of tokens generated.
    pub output_tokens: Vec<u64>,
    /// The number of prompt tokens computed, including those computed again after a preemption.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt_tokens_computed: Vec<u64>,
    /// The number of admitted requests of all engines, as a mean over time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub running: Vec<f64>,
    /// The number of requests of all engines that waited for admission, as a mean over time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<f64>,
    /// The number of KV blocks that requests of all engines held, as a mean over time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv_used: Vec<f64>,
    /// The greatest share of an engine's KV blocks that was in use during a step, 0 to 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv_max_share: Vec<f64>,
    /// The number of preemptions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preemptions: Vec<u64>,
    /// The number of drafts scored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drafts: Vec<u64>,
    /// The number of drafts accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<u64>,
    /// The number of prompt tokens found in the prefix cache, counted when a request's first token came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cached_tokens: Vec<u64>,
}

impl Timeline {
    /// What is left of it where a server ran the requests, which tells nothing of its steps.
    pub(super) fn of_server(self) -> Self {
        let Self { bin_s, observed_from_s, arrivals, finished, output_tokens, .. } = self;
        Self { bin_s, observed_from_s, arrivals, finished, output_tokens, ..Self::default() }
    }
}

/// The most bins.
const MOST_BINS: usize = 600;
/// The width of a bin at first, in nanoseconds.
const FIRST_BIN_NS: u64 = 100_000_000;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bin {
    pub arrivals: u64,
    pub finished: u64,
    pub output_tokens: u64,
    pub prompt_tokens: u64,
    pub preemptions: u64,
    pub drafts: u64,
    pub accepted: u64,
    pub cached_tokens: u64,
    kv_max_share: f64,
    /// The value times nanoseconds, like the next two.
    running: u128,
    waiting: u128,
    kv_used: u128,
}

/// The state of an engine since `since_ns`, as far as it was reported.
#[derive(Clone, Copy, Debug, Default)]
struct Engine {
    since_ns: u64,
    running: u64,
    waiting: u64,
    /// The number of KV blocks in use after its last step.
    kv_used: u64,
    /// The number of KV blocks in use during that step.
    kv_during: u64,
    num_blocks: u64,
    /// Bytes of the pool; 0 where they are not told.
    bytes_total: u64,
}

/// Collects a [`Timeline`].
#[derive(Clone, Debug)]
pub(super) struct Bins {
    bins: Vec<Bin>,
    width_ns: u64,
    engines: BTreeMap<u32, Engine>,
    /// The time from which steps are known, in nanoseconds.
    observed_from_ns: u64,
    pub peak_kv_used: u64,
    pub peak_kv_share: f64,
    /// Of one engine; 0 where bytes are not told.
    pub peak_kv_bytes: u64,
    /// The KV blocks in use, times nanoseconds.
    kv_used_time: u128,
}

impl Bins {
    pub(super) fn new() -> Self {
        Self {
            bins: Vec::new(),
            width_ns: FIRST_BIN_NS,
            engines: BTreeMap::new(),
            observed_from_ns: 0,
            peak_kv_used: 0,
            peak_kv_share: 0.0,
            peak_kv_bytes: 0,
            kv_used_time: 0,
        }
    }

    /// Says that what steps did before `ns` is not known. It must be called before the first step.
    pub(super) fn observe_from(&mut self, ns: u64) {
        self.observed_from_ns = ns;
    }

    /// The bin that contains a time.
    pub(super) fn at(&mut self, ns: u64) -> &mut Bin {
        let mut bin = ns / self.width_ns;
        while bin >= MOST_BINS as u64 {
            self.bins = self.bins.chunks(2).map(Bin::merged).collect();
            self.width_ns = self.width_ns.saturating_mul(2);
            bin = ns / self.width_ns;
        }
        let bin = bin as usize;
        if bin >= self.bins.len() {
            self.bins.resize(bin + 1, Bin::default());
        }
        &mut self.bins[bin]
    }

    /// Takes in the state of an engine that a step reports, both during the step and after it.
    pub(super) fn step(&mut self, report: &StepReport) {
        let unseen = Engine { since_ns: self.observed_from_ns, ..Engine::default() };
        let mut engine = self.engines.get(&report.replica).copied().unwrap_or(unseen);
        let start = report.start_ns.max(engine.since_ns);
        let end = report.end_ns.max(start);
        if start > engine.since_ns {
            self.hold(engine, engine.since_ns, start);
        }
        let during = report.pool_during;
        engine = Engine {
            since_ns: end,
            running: u64::from(report.running),
            waiting: u64::from(report.waiting),
            kv_used: during.used,
            kv_during: during.used,
            num_blocks: during.num_blocks,
            bytes_total: during.bytes_total.unwrap_or(0),
        };
        self.peak_kv_bytes = self.peak_kv_bytes.max(during.bytes_used.unwrap_or(0));
        self.hold(engine, start, end);
        engine.running = engine.running.saturating_sub(report.ended.len() as u64);
        engine.kv_used = report.pool.used;
        self.engines.insert(report.replica, engine);

        // The other engines count with their state while this step ran: that during their own step if it
        // overlapped, else that after it.
        let others = self.engines.iter().filter(|(replica, _)| **replica != report.replica);
        let used = others.fold(during.used, |sum, (_, other)| {
            let overlaps = other.since_ns > start;
            sum.saturating_add(if overlaps { other.kv_during } else { other.kv_used })
        });
        self.peak_kv_used = self.peak_kv_used.max(used);
        let share = ratio(during.used, during.num_blocks);
        self.peak_kv_share = self.peak_kv_share.max(share);
        let bin = self.at(end);
        bin.kv_max_share = bin.kv_max_share.max(share);
    }

    /// Adds the state of an engine from `from` to `to`.
    fn hold(&mut self, engine: Engine, from: u64, to: u64) {
        self.kv_used_time += u128::from(engine.kv_used) * u128::from(to - from);
        let mut from = from;
        // This widens the bins if necessary, so that the loop runs at most 600 times.
        self.at(to);
        while from < to {
            let width = self.width_ns;
            let until = (from / width).saturating_add(1).saturating_mul(width).min(to);
            let ns = u128::from(until - from);
            let bin = self.at(from);
            bin.running += u128::from(engine.running) * ns;
            bin.waiting += u128::from(engine.waiting) * ns;
            bin.kv_used += u128::from(engine.kv_used) * ns;
            from = until;
        }
    }

    /// The number of KV blocks of all engines that made a step.
    pub(super) fn num_blocks(&self) -> u64 {
        self.engines.values().fold(0, |sum, e| sum.saturating_add(e.num_blocks))
    }

    /// Bytes of the pool of one engine, the greatest; `None` where they are not told.
    pub(super) fn bytes_total(&self) -> Option<u64> {
        self.engines.values().map(|engine| engine.bytes_total).max().filter(|&bytes| bytes > 0)
    }

    /// The number of KV blocks in use, as a mean over the time from `observed_from_ns` until `end_ns`.
    pub(super) fn mean_kv_used(&self, end_ns: u64) -> f64 {
        self.kv_used_time as f64 / end_ns.saturating_sub(self.observed_from_ns).max(1) as f64
    }

    /// The bins as lists. A mean covers the part of its bin that was seen; in the last bin that is the part
    /// before `end_ns`.
    pub(super) fn timeline(&self, end_ns: u64) -> Timeline {
        let width = self.width_ns;
        let counts = |of: fn(&Bin) -> u64| self.bins.iter().map(of).collect();
        let means = |of: fn(&Bin) -> u128| {
            let mean = |(i, bin): (usize, &Bin)| {
                let from = (i as u64).saturating_mul(width);
                let until = end_ns.min(from.saturating_add(width));
                let passed = until.saturating_sub(from.max(self.observed_from_ns));
                // Rounded to 6 decimals. More of them would be noise in a chart, and make the file twice as
                // long.
                (of(bin) as f64 / passed.max(1) as f64 * 1e6).round() / 1e6
            };
            self.bins.iter().enumerate().map(mean).collect()
        };
        Timeline {
            bin_s: width as f64 / 1e9,
            observed_from_s: self.observed_from_ns as f64 / 1e9,
            arrivals: counts(|b| b.arrivals),
            finished: counts(|b| b.finished),
            output_tokens: counts(|b| b.output_tokens),
            prompt_tokens_computed: counts(|b| b.prompt_tokens),
            running: means(|b| b.running),
            waiting: means(|b| b.waiting),
            kv_used: means(|b| b.kv_used),
            kv_max_share: self.bins.iter().map(|b| (b.kv_max_share * 1e6).round() / 1e6).collect(),
            preemptions: counts(|b| b.preemptions),
            drafts: counts(|b| b.drafts),
            accepted: counts(|b| b.accepted),
            cached_tokens: counts(|b| b.cached_tokens),
        }
    }
}

impl Bin {
    fn merged(pair: &[Self]) -> Self {
        let mut all = Self::default();
        for bin in pair {
            all.arrivals += bin.arrivals;
            all.finished += bin.finished;
            all.output_tokens += bin.output_tokens;
            all.prompt_tokens += bin.prompt_tokens;
            all.preemptions += bin.preemptions;
            all.drafts += bin.drafts;
            all.accepted += bin.accepted;
            all.cached_tokens += bin.cached_tokens;
            all.kv_max_share = all.kv_max_share.max(bin.kv_max_share);
            all.running += bin.running;
            all.waiting += bin.waiting;
            all.kv_used += bin.kv_used;
        }
        all
    }
}

/// `part / whole`, or 0 if `whole` is 0.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
