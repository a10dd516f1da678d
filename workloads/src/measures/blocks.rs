use serde::{Deserialize, Serialize};

use crate::latency::quantile;

/// Statistics of a count over decode rows, or over the blocks that they read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Tally {
    /// The number of values.
    pub count: u64,
    /// The least value.
    pub min: f64,
    /// The median: half of the values are not above it. Between two values it is interpolated, as numpy does.
    pub p50: f64,
    /// 95 % of the values are not above it, interpolated likewise.
    pub p95: f64,
    /// The greatest value.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

/// A block that many decode rows read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HotBlock {
    /// Its id in the pool.
    pub block_id: u32,
    /// The number of decode steps of requests that held it as a part of their cached prefix.
    pub touch_count: u64,
    /// The engine whose pool it is in.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replica: u32,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Values from 0 to `STEPS` are counted one by one. If greater ones occur, values are counted in steps of a
/// power of two.
const STEPS: usize = 4096;

/// A histogram of small whole numbers. Greater ones are known to one part in 2,048.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    counts: Vec<u64>,
    /// Values are counted in steps of `1 << shift`.
    shift: u32,
    sum: u128,
    min: u64,
    max: u64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; STEPS + 1], shift: 0, sum: 0, min: u64::MAX, max: 0 }
    }

    #[inline]
    pub(super) fn add(&mut self, value: u64, count: u64) {
        while value >> self.shift > STEPS as u64 {
            // The step doubles, so pairs of counts are merged.
            for i in 0..=STEPS / 2 {
                let second = if i == STEPS / 2 { 0 } else { self.counts[2 * i + 1] };
                self.counts[i] = self.counts[2 * i] + second;
            }
            self.counts[STEPS / 2 + 1..].fill(0);
            self.shift += 1;
        }
        self.counts[(value >> self.shift) as usize] += count;
        self.sum += u128::from(value) * u128::from(count);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// The statistics, with every value multiplied by `unit`.
    pub(super) fn tally(&self, unit: f64) -> Tally {
        let count: u64 = self.counts.iter().sum();
        if count == 0 {
            return Tally::default();
        }
        let ranked = |rank: u64| {
            let mut seen = 0;
            let step = self.counts.iter().position(|n| {
                seen += n;
                seen > rank
            });
            // The greatest value that the step covers.
            let value = ((step.unwrap_or(STEPS) as u64 + 1) << self.shift) - 1;
            value.clamp(self.min, self.max) as f64 * unit
        };
        let at = |share: f64| quantile(count, share, ranked);
        Tally {
            count,
            min: self.min as f64 * unit,
            p50: at(0.5),
            p95: at(0.95),
            max: self.max as f64 * unit,
            mean: self.sum as f64 / count as f64 * unit,
        }
    }
}

/// A share of 1 is counted as this many parts.
const SHARE: u64 = 4096;

/// Counts which blocks the decode rows of dense attention read. They read all of their context.
#[derive(Clone, Debug)]
pub(super) struct Touches {
    block_size: u32,
    blocks: Counts,
    /// The number of full blocks that were read. All blocks of a row but its last are full.
    full: u64,
    /// For each number of tokens, how many rows had that many in their last block. If blocks have more than
    /// 4,096 tokens, the numbers are in units of 1/4096 of a block.
    last: Vec<u64>,
    prefix: Counts,
    /// For each engine, how often each block id was read.
    hot: std::collections::BTreeMap<u32, Vec<u64>>,
}

/// The decode rows of one request that have not been counted yet, since its context grew into another
/// block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    /// How many tokens fit in the blocks that it reads.
    capacity: u32,
    /// The number of rows that read these blocks.
    rows: u32,
}

impl Touches {
    pub(super) fn new(block_size: u32) -> Self {
        Self {
            block_size: block_size.max(1),
            blocks: Counts::new(),
            full: 0,
            last: vec![0; (block_size.max(1) as usize).min(STEPS) + 1],
            prefix: Counts::new(),
            hot: std::collections::BTreeMap::new(),
        }
    }

    /// Takes note of a decode row over `context` tokens, of which the first `prefix_blocks` blocks were
    /// cached.
    #[inline]
    pub(super) fn row(&mut self, reading: &mut Reading, context: u32, prefix_blocks: u32) {
        if context == 0 {
            return;
        }
        // A context shrinks by a block only if the drafts of the row before were rejected.
        if context > reading.capacity || reading.capacity - context >= self.block_size {
            self.end(reading, prefix_blocks);
            let capacity = u64::from(context.div_ceil(self.block_size)) * u64::from(self.block_size);
            reading.capacity = capacity.min(u64::from(u32::MAX)) as u32;
        }
        reading.rows += 1;
        let in_last = self.block_size - (reading.capacity - context).min(self.block_size);
        let part = if self.block_size as usize <= STEPS {
            in_last as usize
        } else {
            (u64::from(in_last) * STEPS as u64 / u64::from(self.block_size)) as usize
        };
        self.last[part] += 1;
    }

    /// Counts the rows that `reading` has noted.
    pub(super) fn end(&mut self, reading: &mut Reading, prefix_blocks: u32) {
        let blocks = u64::from(reading.capacity.div_ceil(self.block_size));
        let rows = u64::from(std::mem::take(&mut reading.rows));
        if rows > 0 && blocks > 0 {
            self.blocks.add(blocks, rows);
            self.full += (blocks - 1) * rows;
            self.prefix.add((u64::from(prefix_blocks).min(blocks) * SHARE + blocks / 2) / blocks, rows);
        }
    }

    /// Takes note that a request which held these cached blocks ended after `decode_steps` decode steps.
    /// The pool has `pool` blocks.
    pub(super) fn held(&mut self, replica: u32, prefix_blocks: &[u32], decode_steps: u64, pool: u64) {
        if prefix_blocks.is_empty() || decode_steps == 0 {
            return;
        }
        let hot = self.hot.entry(replica).or_default();
        for &block in prefix_blocks.iter().filter(|&&b| u64::from(b) < pool) {
            let block = block as usize;
            if block >= hot.len() {
                hot.resize(block + 1, 0);
            }
            hot[block] = hot[block].saturating_add(decode_steps);
        }
    }

    /// The number of blocks that a decode row read.
    pub(super) fn unique_blocks(&self) -> Tally {
        self.blocks.tally(1.0)
    }

    /// The number of tokens that a decode row read of each block.
    pub(super) fn tokens_per_touched_block(&self) -> Tally {
        let most = self.last.len() as u64 - 1;
        let mut all = Counts::new();
        for (parts, &rows) in self.last.iter().enumerate().filter(|(_, rows)| **rows > 0) {
            all.add(parts as u64 * u64::from(self.block_size) / most, rows);
        }
        if self.full > 0 {
            all.add(u64::from(self.block_size), self.full);
        }
        all.tally(1.0)
    }

    /// The share of a decode row's blocks that belonged to its cached prefix.
    pub(super) fn prefix_share(&self) -> Tally {
        self.prefix.tally(1.0 / SHARE as f64)
    }

    /// The 16 blocks that were read most, in falling order.
    pub(super) fn hottest(&self) -> Vec<HotBlock> {
        let mut all: Vec<HotBlock> = Vec::new();
        for (&replica, counts) in &self.hot {
            let touched = counts.iter().enumerate().filter(|(_, n)| **n > 0);
            all.extend(touched.map(|(id, &touch_count)| HotBlock {
                block_id: id as u32,
                touch_count,
                replica,
            }));
        }
        all.sort_by_key(|b| (std::cmp::Reverse(b.touch_count), b.replica, b.block_id));
        all.truncate(16);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn great_counts_are_told_to_one_part_in_2048(
            values in prop::collection::vec((prop_oneof![0u64..5000, 0u64..1 << 40], 1u64..4), 1..50),
        ) {
            let mut counts = Counts::new();
            values.iter().for_each(|&(v, n)| counts.add(v, n));
            let mut all: Vec<u64> = values.iter().flat_map(|&(v, n)| (0..n).map(move |_| v)).collect();
            all.sort_unstable();
            let tally = counts.tally(1.0);
            let step = if all[all.len() - 1] <= 4096 { 0.0 } else { all[all.len() - 1] as f64 / 2048.0 };
            for (q, got) in [(0.5, tally.p50), (0.95, tally.p95)] {
                // This is numpy's rule.
                let rank = q * (all.len() - 1) as f64;
                let (low, high) = (all[rank.floor() as usize] as f64, all[rank.ceil() as usize] as f64);
                let want = low + (high - low) * rank.fract();
                let least = want * (1.0 - 1e-12);
                prop_assert!(got >= least && got <= want + step + want * 1e-12, "{q}: {got} for {want}");
            }
            prop_assert_eq!((tally.min, tally.max), (all[0] as f64, all[all.len() - 1] as f64));
            prop_assert_eq!(tally.count, all.len() as u64);
            let mean = all.iter().map(|&v| v as f64).sum::<f64>() / all.len() as f64;
            prop_assert!((tally.mean - mean).abs() <= 1e-9 * mean);
        }
    }

    #[test]
    fn a_hostile_block_size_takes_no_memory_and_stays_in_bounds() {
        let mut touches = Touches::new(u32::MAX);
        let mut reading = Reading::default();
        for context in [1, u32::MAX, 0, u32::MAX / 2] {
            touches.row(&mut reading, context, 7);
        }
        touches.end(&mut reading, 7);
        assert_eq!((touches.unique_blocks().max, touches.last.len()), (1.0, 4097));
        let tokens = touches.tokens_per_touched_block();
        assert_eq!((tokens.count, tokens.min, tokens.max), (3, 0.0, f64::from(u32::MAX)));
        touches.held(0, &[3, 100], 5, 100);
        assert_eq!(touches.hottest(), [HotBlock { block_id: 3, touch_count: 5, replica: 0 }]);
    }
}
