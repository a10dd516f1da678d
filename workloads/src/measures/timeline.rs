use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::replay::StepReport;

/// What happened when, in at most 600 bins of equal width: bins of 100 ms, as often merged in pairs as the run's length asks.
/// Each list has one value a bin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Timeline {
    /// Seconds a bin; the first begins with the run.
    pub bin_s: f64,
    /// Seconds into the run from which steps were seen: 0, but where a run was resumed, the start of the first step after that.
    /// What is counted by step (tokens, running, waiting, KV, preemptions, drafts) is not known before it, and 0 there; the bin
    /// that it is in has its means over what was seen of it.
    #[serde(default)]
    pub observed_from_s: f64,
    /// Requests whose intended arrival it was.
    pub arrivals: Vec<u64>,
    /// Requests that finished.
    pub finished: Vec<u64>,
    /// Tokens generated.
    pub output_tokens: Vec<u64>,
    /// Prompt tokens computed, those computed again after a preemption too.
    pub prompt_tokens_computed: Vec<u64>,
    /// Admitted requests, mean over time, of all engines.
    pub running: Vec<f64>,
    /// Requests that waited for admission, mean over time, of all engines.
    pub waiting: Vec<f64>,
    /// KV blocks that requests held, mean over time, of all engines.
    pub kv_used: Vec<f64>,
    /// The greatest share of an engine's KV blocks in use as a step ran, 0 to 1.
    pub kv_max_share: Vec<f64>,
    /// Preemptions.
    pub preemptions: Vec<u64>,
    /// Drafts scored.
    pub drafts: Vec<u64>,
    /// Drafts accepted.
    pub accepted: Vec<u64>,
    /// Prompt tokens found in the prefix cache, when a request's first token came.
    pub cached_tokens: Vec<u64>,
}

/// Bins at most.
const MOST_BINS: usize = 600;
/// Nanoseconds of a bin, at first.
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
    /// Value times nanoseconds.
    running: u128,
    waiting: u128,
    kv_used: u128,
}

/// What an engine was last seen to have, from `since_ns` on.
#[derive(Clone, Copy, Debug, Default)]
struct Engine {
    since_ns: u64,
    running: u64,
    waiting: u64,
    /// KV blocks in use, after its last step.
    kv_used: u64,
    /// And as that step ran.
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
    /// When steps were first looked at.
    observed_from_ns: u64,
    pub peak_kv_used: u64,
    pub peak_kv_share: f64,
    /// Of one engine; 0 where bytes are not told.
    pub peak_kv_bytes: u64,
    /// KV blocks in use, times nanoseconds.
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

    /// What steps did before this is not known. Told before the first step.
    pub(super) fn observe_from(&mut self, ns: u64) {
        self.observed_from_ns = ns;
    }

    /// The bin that a time is in.
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

    /// Takes in what a step says about its engine's state: it ran with so many, and left the pool so.
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

        // Other engines, as they were while this one ran: in a step of theirs that overlapped, or behind it.
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

    /// An engine had this from `from` to `to`.
    fn hold(&mut self, engine: Engine, from: u64, to: u64) {
        self.kv_used_time += u128::from(engine.kv_used) * u128::from(to - from);
        let mut from = from;
        // Widens the bins if it must, so that the loop takes 600 turns at most.
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

    /// KV blocks of all engines that made a step.
    pub(super) fn num_blocks(&self) -> u64 {
        self.engines.values().fold(0, |sum, e| sum.saturating_add(e.num_blocks))
    }

    /// Bytes of the pool of one engine, the greatest; `None` where they are not told.
    pub(super) fn bytes_total(&self) -> Option<u64> {
        self.engines.values().map(|engine| engine.bytes_total).max().filter(|&bytes| bytes > 0)
    }

    /// KV blocks in use, mean over the time that was seen until `end_ns`.
    pub(super) fn mean_kv_used(&self, end_ns: u64) -> f64 {
        self.kv_used_time as f64 / end_ns.saturating_sub(self.observed_from_ns).max(1) as f64
    }

    /// As lists; means are over the part of a bin that was seen: of the last one, that before `end_ns`.
    pub(super) fn timeline(&self, end_ns: u64) -> Timeline {
        let width = self.width_ns;
        let counts = |of: fn(&Bin) -> u64| self.bins.iter().map(of).collect();
        let means = |of: fn(&Bin) -> u128| {
            let mean = |(i, bin): (usize, &Bin)| {
                let from = (i as u64).saturating_mul(width);
                let until = end_ns.min(from.saturating_add(width));
                let passed = until.saturating_sub(from.max(self.observed_from_ns));
                // 6 decimals: what is beyond them is noise in a picture, and makes the file twice as long.
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

/// 0 of nothing.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
