//! Sums from which the figures of a layer are made.

use std::collections::BTreeMap;

use super::figures::{
    ContextCoverage, DsaFigures, LayerOverlap, PrefixFigures, ReuseDistances, SizeMisses, StepOverlap,
    TokenLru, VerifyUnion,
};
use crate::trace::DsaTopkRecord;

/// A mean in the making.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean {
    sum: f64,
    pub(super) count: u64,
}

impl Mean {
    pub(super) fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }

    fn or_zero(self) -> f64 {
        self.get().unwrap_or(0.0)
    }
}

/// How two ascending lists meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meeting {
    pub(super) both: f64,
    pub(super) either: f64,
    pub(super) second: f64,
}

impl Meeting {
    /// Of `first`, each number increased by `shift`, and `second`.
    pub(super) fn of(first: &[u32], second: &[u32], shift: u32) -> Self {
        let (mut i, mut j, mut both) = (0, 0, 0usize);
        while let (Some(a), Some(&b)) = (first.get(i).map(|a| a.saturating_add(shift)), second.get(j)) {
            both += usize::from(a == b);
            i += usize::from(a <= b);
            j += usize::from(b <= a);
        }
        let (all, second) = (first.len() + second.len(), second.len() as f64);
        Self { both: both as f64, either: (all - both) as f64, second }
    }
}

/// The sums of one layer, or of all together.
#[derive(Debug, Default)]
pub(super) struct Tally {
    layer: Option<u16>,
    selected: Mean,
    keys: Mean,
    coverage: Mean,
    coverage_random: Mean,
    /// By the logarithm of the number of keys.
    contexts: BTreeMap<u32, [Mean; 2]>,
    sink: u64,
    recent: u64,
    pub(super) raw: Mean,
    pub(super) of_current: Mean,
    pub(super) shifted: Mean,
    pub(super) jaccard: Mean,
    pub(super) layer_of_current: Mean,
    pub(super) layer_jaccard: Mean,
    prefix: Mean,
    pub(super) verify_rows: Mean,
    pub(super) verify_keys: Mean,
    pub(super) verify_union: Mean,
    pub(super) tokens: TokenLru,
    block_reads: u64,
    cold_blocks: u64,
    /// Index 0 counts distance 0, index i those from `2^(i-1)` to below `2^i`.
    distances: Vec<u64>,
    /// By the logarithm of the size.
    pub(super) belady: BTreeMap<u32, u64>,
}

impl Tally {
    pub(super) fn of(layer: Option<u16>) -> Self {
        Self { layer, ..Self::default() }
    }

    pub(super) fn record(&mut self, record: &DsaTopkRecord, (sink, recent): (u32, u32)) {
        let selected = &record.selected_token_pos;
        self.selected.add(selected.len() as f64);
        self.keys.add(f64::from(record.seq_len_current));
        self.coverage.add(record.coverage);
        self.coverage_random.add(record.coverage_random);
        let context = self.contexts.entry(record.seq_len_current.max(1).ilog2()).or_default();
        context[0].add(record.coverage);
        context[1].add(record.coverage_random);
        self.sink += selected.partition_point(|&position| position < sink) as u64;
        let from = record.seq_len_current.saturating_sub(recent);
        self.recent += (selected.len() - selected.partition_point(|&position| position < from)) as u64;
        if record.prefix.prefix_cache_hit {
            self.prefix.add(record.prefix.intersection_ratio);
        }
    }

    /// Takes in a read of a block.
    pub(super) fn block(&mut self, distance: Option<u64>) {
        self.block_reads += 1;
        let Some(distance) = distance else {
            self.cold_blocks += 1;
            return;
        };
        let bin = distance.checked_ilog2().map_or(0, |log| log as usize + 1);
        if bin >= self.distances.len() {
            self.distances.resize(bin + 1, 0);
        }
        self.distances[bin] += 1;
    }

    /// The misses of a cache of `2^log` blocks that drops the least recently used: reads at that distance or beyond.
    fn lru_misses(&self, log: u32) -> u64 {
        self.cold_blocks + self.distances.iter().skip(log as usize + 1).sum::<u64>()
    }

    pub(super) fn figures(&self) -> DsaFigures {
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        let chosen = self.selected.sum as u64;
        let (rows, keys, union) = (self.verify_rows, self.verify_keys, self.verify_union);
        DsaFigures {
            layer: self.layer,
            records: self.selected.count,
            selected_keys: self.selected.or_zero(),
            keys: self.keys.or_zero(),
            steps: StepOverlap {
                pairs: self.raw.count,
                raw: self.raw.get(),
                of_current: self.of_current.get(),
                shifted: self.shifted.get(),
                jaccard: self.jaccard.get(),
            },
            adjacent_layers: LayerOverlap {
                pairs: self.layer_jaccard.count,
                of_current: self.layer_of_current.get(),
                jaccard: self.layer_jaccard.get(),
            },
            coverage: self.coverage.or_zero(),
            coverage_random: self.coverage_random.or_zero(),
            coverage_by_context: self
                .contexts
                .iter()
                .map(|(&log, [coverage, random])| ContextCoverage {
                    from_keys: 1 << log,
                    below_keys: 2 << log,
                    records: coverage.count,
                    coverage: coverage.or_zero(),
                    coverage_random: random.or_zero(),
                })
                .collect(),
            sink_share: share(self.sink, chosen),
            recent_share: share(self.recent, chosen),
            prefix: PrefixFigures { hit_records: self.prefix.count, intersection_ratio: self.prefix.get() },
            verify_union: VerifyUnion {
                steps: union.count,
                rows: rows.get(),
                keys_per_row: keys.get(),
                union_keys: union.get(),
                ratio: union.get().zip(keys.get()).map(|(union, keys)| union / keys),
            },
            token_lru: TokenLru {
                miss_ratio: (self.tokens.accesses > 0)
                    .then(|| share(self.tokens.misses, self.tokens.accesses)),
                ..self.tokens
            },
            reuse_distances: ReuseDistances {
                accesses: self.block_reads,
                cold: self.cold_blocks,
                below: (0..).zip(&self.distances).map(|(log, &reads)| (1 << log, reads)).collect(),
            },
            misses_by_size: self
                .belady
                .iter()
                .map(|(&log, &belady)| SizeMisses {
                    blocks: 1 << log,
                    lru: share(self.lru_misses(log), self.block_reads),
                    belady: share(belady, self.block_reads),
                })
                .collect(),
        }
    }
}
