//! Passes: which token rows of a layer are stored, or attend, while the cells that they need are held.

use std::time::Instant;

use pagedraft_attention::AttentionError;
use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::metadata::{AttentionMetadata, MaskKind, PAD_SLOT};
use pagedraft_attention::sparse::{SelectionView, SparseRow, SparseRows, VectorLayer};
use pagedraft_block_manager::BlockId;

use super::counts::Waited;
use super::frames::{Tiers, Wanted};
use crate::cpu::memory::Memory;
use crate::error::ModelError;

/// The blocks that a token row selected keys in, each once, in the order of the keys.
fn blocks_of(list: &[u32], table: &[BlockId], block_size: u32, blocks: &mut Vec<u32>) {
    blocks.clear();
    let mut last = None;
    for &index in list {
        let place = index / block_size;
        if last != Some(place) {
            last = Some(place);
            blocks.extend(table.get(place as usize).map(|block| block.0));
        }
    }
}

/// What rows attend to.
#[derive(Clone, Copy)]
pub(crate) struct Attended<'a> {
    /// The rows of the step.
    pub rows: &'a SparseRows,
    /// Its tables.
    pub metadata: &'a AttentionMetadata,
    /// The keys that each row selected.
    pub selection: SelectionView<'a>,
}

impl<'a> Attended<'a> {
    /// The keys that a row selected, and its table.
    fn of(&self, row: &SparseRow) -> (&'a [u32], &'a [BlockId]) {
        // SAFETY: nobody writes the selection between the operation that chose and the one that attends.
        let list = unsafe { self.selection.row(row.token as usize) };
        (list, self.metadata.block_tables.get(row.row as usize).unwrap_or(&[]))
    }
}

impl Tiers {
    /// Holds what as many rows select, from the `first` on, as tier 0 has frames for. Gives how many they are: none if the first one
    /// alone needs more.
    pub(crate) fn next_pass(&mut self, layer: usize, step: Attended<'_>, first: usize) -> usize {
        let rows = &step.rows.rows()[first..];
        self.begin_pass();
        let (mut wanted, mut own) = (Vec::<Wanted>::new(), Vec::new());
        let mut ends = Vec::new();
        for row in rows {
            let start = self.log.is_some().then(Instant::now);
            let (list, table) = step.of(row);
            blocks_of(list, table, self.layout().block_size(), &mut own);
            let before = wanted.len();
            for &block in &own {
                if self.collects(block) {
                    wanted.push(Wanted { block, token: row.token, fresh: false });
                }
            }
            if wanted.len() > self.num_frames() {
                wanted.drain(before..).for_each(|want| self.uncollect(want.block));
                break;
            }
            ends.push(row);
            if let (Some(start), Some((_, waited))) = (start, &mut self.log) {
                let us = start.elapsed().as_secs_f64() * 1e6;
                waited.push(Waited { layer: layer as u16, token: row.token, us });
            }
        }
        if ends.is_empty() {
            return 0;
        }
        self.counts.extra_passes += u64::from(first > 0);
        let lost = self.hold(layer, &wanted);
        if !lost.is_empty() {
            for row in &ends {
                let (list, table) = step.of(row);
                blocks_of(list, table, self.layout().block_size(), &mut own);
                if own.iter().any(|block| lost.contains(block)) {
                    self.lose_row(row.token);
                }
            }
        }
        ends.len()
    }

    /// Copies the latents that one row selected, block by block, into a list. `false`, if one of them is lost.
    pub(crate) fn gather(
        &mut self,
        layer: usize,
        step: Attended<'_>,
        row: usize,
        room: &mut GatherRoom,
    ) -> Result<bool, ModelError> {
        let row = step.rows.rows()[row];
        let (list, table) = step.of(&row);
        let (block_size, token_bytes) = (self.layout().block_size(), self.layout().token_bytes());
        room.begin(list.len(), block_size, token_bytes)?;
        self.counts.gathered_rows += 1;
        let most = self.num_frames();
        let (mut at, mut wanted) = (0, Vec::new());
        while at < list.len() {
            self.begin_pass();
            wanted.clear();
            let mut end = at;
            let mut last = None;
            while end < list.len() {
                let place = list[end] / block_size;
                if last != Some(place) {
                    let Some(block) = table.get(place as usize).map(|block| block.0) else { break };
                    if wanted.len() == most {
                        break;
                    }
                    // A table may name a block twice only in padding, which nobody selects.
                    wanted.push(Wanted { block, token: row.token, fresh: false });
                    last = Some(place);
                }
                end += 1;
            }
            if end == at || !self.hold(layer, &wanted).is_empty() {
                self.lose_row(row.token);
                return Ok(false);
            }
            for (place, &index) in (at..end).zip(&list[at..end]) {
                let block = table.get((index / block_size) as usize).map_or(0, |block| block.0);
                let from = (index % block_size) as usize * token_bytes;
                let to = place * token_bytes;
                if let (Some(cell), Some(memory)) = (self.resident(layer, block), &mut room.memory) {
                    memory[to..to + token_bytes].copy_from_slice(&cell[from..from + token_bytes]);
                }
            }
            at = end;
        }
        Ok(true)
    }

    /// Holds the blocks of as many slots, from the `first` on, as tier 0 has frames for, so that they can be written. Puts these slots
    /// into `stored`, those of lost cells as padding.
    pub(crate) fn next_store(&mut self, layer: usize, slots: &[i64], first: usize, stored: &mut Vec<i64>) {
        let size = i64::from(self.layout().block_size());
        self.begin_pass();
        stored.clear();
        let mut wanted: Vec<Wanted> = Vec::new();
        for (token, &slot) in (first as u32..).zip(&slots[first..]) {
            if slot >= 0 {
                // A slot that does not exist is refused where it is written.
                let block = u32::try_from(slot / size).unwrap_or(u32::MAX);
                if self.collects(block) {
                    if wanted.len() == self.num_frames() {
                        break;
                    }
                    wanted.push(Wanted { block, token, fresh: false });
                }
                if slot % size == 0
                    && let Some(want) = wanted.iter_mut().rev().find(|want| want.block == block)
                {
                    want.fresh = true;
                }
            }
            stored.push(slot);
        }
        let lost = self.hold(layer, &wanted);
        self.written(layer, &wanted);
        if !lost.is_empty() {
            for slot in stored.iter_mut().filter(|slot| **slot >= 0) {
                if lost.iter().any(|&block| i64::from(block) == *slot / size) {
                    *slot = PAD_SLOT;
                }
            }
        }
    }

    /// Whether a token row selected a lost cell in this step.
    pub(crate) fn is_lost(&self, token: u32) -> bool {
        self.lost_rows.binary_search(&token).is_ok()
    }

    fn lose_row(&mut self, token: u32) {
        if let Err(at) = self.lost_rows.binary_search(&token) {
            self.lost_rows.insert(at, token);
            self.counts.lost_rows += 1;
        }
    }
}

/// Where the latents of one row are gathered: a little cache of one sequence, which holds the selected keys alone.
#[derive(Default)]
pub(crate) struct GatherRoom {
    memory: Option<Memory<u8>>,
    builder: Option<MetadataBuilder>,
    rows: SparseRows,
    table: Vec<BlockId>,
    positions: Vec<u32>,
    len: [u32; 1],
}

impl GatherRoom {
    /// Makes room for so many keys.
    fn begin(&mut self, keys: usize, block_size: u32, token_bytes: usize) -> Result<(), ModelError> {
        let blocks = keys.div_ceil(block_size as usize);
        let bytes = blocks * block_size as usize * token_bytes;
        if self.memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
            self.memory = Some(Memory::zeroed(bytes)?);
        }
        self.table.clear();
        self.table.extend((0..blocks as u32).map(BlockId));
        self.positions.clear();
        self.positions.extend(0..keys as u32);
        self.len = [keys as u32];
        let builder = match &mut self.builder {
            Some(builder) => builder,
            None => self.builder.insert(MetadataBuilder::new(block_size)?),
        };
        builder.begin();
        let keys = keys as u32;
        builder.push_row(keys.saturating_sub(1), 1, &self.table, MaskKind::Causal)?;
        self.rows.plan(builder.finish(), block_size, blocks as u32)?;
        Ok(())
    }

    /// The step of one row that attends to all that was gathered, and the latents, which lie as `like` says.
    pub(crate) fn step(&mut self, like: &VectorLayer) -> Result<(Attended<'_>, VectorLayer), AttentionError> {
        let layout = *like.layout();
        let (Some(builder), Some(memory)) = (&self.builder, &self.memory) else {
            return Err(AttentionError::ForeignPlan { what: "step" });
        };
        // SAFETY: there are as many blocks as the table names, each as large as the layout says; they begin at a multiple of 64 bytes
        // and lie there as long as the room, which is borrowed as long as the step.
        let latents = unsafe {
            VectorLayer::new(memory.as_ptr(), layout.block_bytes(), self.table.len() as u32, layout)
        };
        let keys = self.positions.len();
        let metadata = builder.finish();
        let selection = SelectionView::new(&mut self.positions, &mut self.len, keys);
        Ok((Attended { rows: &self.rows, metadata, selection }, latents))
    }
}
