use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::blocks::Counts;
use super::{HotBlock, Summary};
use crate::Error;
use crate::trace::{DsaRecords, DsaRow, DsaTopkRecord};

/// A share of 1 is counted as this many parts.
const SHARE: u64 = 4096;
/// The most blocks of a layer in `prefix_hot_blocks`.
const HOTTEST: usize = 16;

/// Counts what the decoded tokens of sparse attention read, by the records of a trace.
#[derive(Debug)]
struct SparseBlocks {
    blocks: Counts,
    in_block: Counts,
    offsets: Counts,
    prefix: Counts,
    /// For each layer, how often each block of a cached prefix was read.
    hot: BTreeMap<u16, HashMap<u32, u64>>,
}

impl Summary {
    /// Replaces the figures about blocks by those of the records of sparse attention that the run's trace in `directory` has. Without
    /// records they stay those of dense attention.
    ///
    /// # Errors
    ///
    /// The records can't be read.
    pub fn read_sparse_blocks(&mut self, directory: &Path) -> Result<(), Error> {
        let Some(mut records) = DsaRecords::open(directory)? else { return Ok(()) };
        let (hot, [blocks, in_block, offsets, prefix]) = (BTreeMap::new(), [(); 4].map(|()| Counts::new()));
        let mut all = SparseBlocks { blocks, in_block, offsets, prefix, hot };
        while let Some(record) = records.next_record()? {
            all.add(&record);
        }
        let engine = self.engine.get_or_insert_default();
        engine.unique_blocks = all.blocks.tally(1.0);
        engine.tokens_per_touched_block = all.in_block.tally(1.0);
        engine.offsets = Some(all.offsets.tally(1.0));
        engine.prefix_intersection_ratio = all.prefix.tally(1.0 / SHARE as f64);
        engine.prefix_hot_blocks = all.hottest();
        Ok(())
    }
}

impl SparseBlocks {
    fn add(&mut self, record: &DsaTopkRecord) {
        if record.row == DsaRow::Prefill || record.accepted == Some(false) {
            return;
        }
        self.blocks.add(u64::from(record.unique_blocks), 1);
        let size = record.block_size_tokens.max(1);
        for same in record.selected_token_pos.chunk_by(|a, b| a / size == b / size) {
            self.in_block.add(same.len() as u64, 1);
        }
        for &position in &record.selected_token_pos {
            self.offsets.add(u64::from(record.step_idx.saturating_sub(position)), 1);
        }
        self.prefix.add((record.prefix.intersection_ratio * SHARE as f64).round() as u64, 1);
        let hot = self.hot.entry(record.layer_id).or_default();
        for &block in &record.prefix.intersection_blocks {
            *hot.entry(block).or_default() += 1;
        }
    }

    /// The blocks of cached prefixes that were read most, layer by layer.
    fn hottest(&self) -> BTreeMap<String, Vec<HotBlock>> {
        let of_layer = |(layer, counts): (&u16, &HashMap<u32, u64>)| {
            let block = |(&block_id, &touch_count)| HotBlock { block_id, touch_count, replica: 0 };
            let mut blocks: Vec<HotBlock> = counts.iter().map(block).collect();
            blocks.sort_by_key(|block| (std::cmp::Reverse(block.touch_count), block.block_id));
            blocks.truncate(HOTTEST);
            (layer.to_string(), blocks)
        };
        self.hot.iter().map(of_layer).collect()
    }
}
