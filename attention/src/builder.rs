//! Writes the metadata of a step, row by row.

use crate::error::AttentionError;
use crate::metadata::{AttentionMetadata, MaskKind, PAD_SLOT};
use pagedraft_block_manager::BlockId;

/// Builds [`AttentionMetadata`] from metadata rows in their final order, in buffers that live from
/// step to step: once they have grown, a step allocates nothing.
///
/// The builder knows no scorer: MQA pushes one row of k+1 query tokens for a plan row, batch expansion
/// k+1 rows of one token with the same table and growing contexts.
///
/// Cost: a copy of the tables, and one add a token.
#[derive(Clone, Debug)]
pub struct MetadataBuilder {
    block_shift: u32,
    metadata: AttentionMetadata,
}

impl MetadataBuilder {
    /// A builder for blocks of 16, 32 or 64 tokens.
    ///
    /// # Errors
    ///
    /// [`AttentionError::BlockSize`] for any other size.
    pub fn new(block_size: u32) -> Result<MetadataBuilder, AttentionError> {
        if !matches!(block_size, 16 | 32 | 64) {
            return Err(AttentionError::BlockSize { block_size });
        }
        let block_shift = block_size.trailing_zeros();
        let mut builder = MetadataBuilder { block_shift, metadata: AttentionMetadata::default() };
        builder.begin();
        Ok(builder)
    }

    /// Tokens a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1 << self.block_shift
    }

    /// Starts a step: forgets the rows of the step before.
    pub fn begin(&mut self) {
        let m = &mut self.metadata;
        (m.num_prefills, m.num_prefill_tokens, m.num_decode_tokens) = (0, 0, 0);
        (m.max_query_len, m.max_prefill_seq_len, m.max_decode_seq_len) = (0, 0, 0);
        m.use_cuda_graph = false;
        m.slot_mapping.clear();
        m.seq_lens.clear();
        m.context_lens.clear();
        m.query_start_loc.clear();
        m.query_start_loc.push(0);
        m.seq_start_loc.clear();
        m.seq_start_loc.push(0);
        m.block_tables.clear();
        m.mask_kinds.clear();
    }

    /// Adds a row: `query_len` tokens of indices `context_len ..` in the group whose blocks `table`
    /// lists. Of the table, as many blocks are kept as `context_len + query_len` tokens fill. Rows of
    /// several tokens come before those of one. Call it before any [`pad_slots`](Self::pad_slots).
    ///
    /// # Errors
    ///
    /// [`AttentionError::EmptyRow`], [`RowOrder`](AttentionError::RowOrder),
    /// [`TooLong`](AttentionError::TooLong), [`ShortTable`](AttentionError::ShortTable); the metadata is
    /// then as it was before the call.
    pub fn push_row(
        &mut self,
        context_len: u32,
        query_len: u32,
        table: &[BlockId],
        mask: MaskKind,
    ) -> Result<(), AttentionError> {
        let row = self.metadata.num_rows();
        let tokens_before = self.metadata.slot_mapping.len() as u32;
        let sum =
            |a: u32, b: u32| a.checked_add(b).ok_or(AttentionError::TooLong { row, context_len, query_len });
        let seq_len = sum(context_len, query_len)?;
        let seq_end = sum(self.metadata.seq_start_loc.last().copied().unwrap_or(0), seq_len)?;
        sum(tokens_before, query_len)?;
        self.check_order(query_len)?;
        let needed = seq_len.div_ceil(self.block_size()) as usize;
        let Some(table) = table.get(..needed) else {
            return Err(AttentionError::ShortTable { row, blocks: table.len(), needed });
        };

        self.push_slots(context_len, seq_len, table);
        let m = &mut self.metadata;
        if mask != MaskKind::Causal && m.mask_kinds.is_empty() {
            m.mask_kinds.resize(row, MaskKind::Causal);
        }
        if mask != MaskKind::Causal || !m.mask_kinds.is_empty() {
            m.mask_kinds.push(mask);
        }
        m.block_tables.push(table);
        self.count_row(context_len, query_len, seq_len, seq_end);
        Ok(())
    }

    /// Adds a row that stands for nobody: `query_len` tokens without slots, lengths 0, no table.
    ///
    /// # Errors
    ///
    /// [`AttentionError::EmptyRow`], [`AttentionError::RowOrder`].
    pub fn push_pad_row(&mut self, query_len: u32) -> Result<(), AttentionError> {
        self.check_order(query_len)?;
        let m = &mut self.metadata;
        m.slot_mapping.resize(m.slot_mapping.len() + query_len as usize, PAD_SLOT);
        if !m.mask_kinds.is_empty() {
            m.mask_kinds.push(MaskKind::Causal);
        }
        m.block_tables.push(&[]);
        let seq_end = m.seq_start_loc.last().copied().unwrap_or(0);
        self.count_row(0, query_len, 0, seq_end);
        Ok(())
    }

    /// Adds `count` pad tokens behind those of the last row, in no row.
    pub fn pad_slots(&mut self, count: usize) {
        let slots = &mut self.metadata.slot_mapping;
        slots.resize(slots.len() + count, PAD_SLOT);
    }

    /// Says whether the step is replayed from a graph; every step starts with `false`.
    pub fn set_use_cuda_graph(&mut self, yes: bool) {
        self.metadata.use_cuda_graph = yes;
    }

    /// The metadata of the rows pushed since [`begin`](Self::begin).
    #[must_use]
    pub fn finish(&self) -> &AttentionMetadata {
        &self.metadata
    }

    /// Exchanges the finished metadata for `used` (an earlier step's, whose buffers are taken over; or a
    /// new one), for callers that keep it on record. A step is begun.
    #[must_use]
    pub fn take(&mut self, used: AttentionMetadata) -> AttentionMetadata {
        let finished = std::mem::replace(&mut self.metadata, used);
        self.begin();
        finished
    }

    fn check_order(&self, query_len: u32) -> Result<(), AttentionError> {
        let row = self.metadata.num_rows();
        match query_len {
            0 => Err(AttentionError::EmptyRow { row }),
            2.. if self.metadata.num_decode_tokens > 0 => Err(AttentionError::RowOrder { row, query_len }),
            _ => Ok(()),
        }
    }

    fn push_slots(&mut self, start: u32, end: u32, table: &[BlockId]) {
        let (shift, mask) = (self.block_shift, self.block_size() - 1);
        let slots = &mut self.metadata.slot_mapping;
        let mut index = start;
        while index < end {
            let run = (end - index).min(mask + 1 - (index & mask));
            let first = (i64::from(table[(index >> shift) as usize].0) << shift) + i64::from(index & mask);
            slots.extend(first..first + i64::from(run));
            index += run;
        }
    }

    fn count_row(&mut self, context_len: u32, query_len: u32, seq_len: u32, seq_end: u32) {
        let m = &mut self.metadata;
        if query_len > 1 {
            m.num_prefills += 1;
            m.num_prefill_tokens += query_len;
            m.max_prefill_seq_len = m.max_prefill_seq_len.max(seq_len);
        } else {
            m.num_decode_tokens += 1;
            m.max_decode_seq_len = m.max_decode_seq_len.max(seq_len);
        }
        m.max_query_len = m.max_query_len.max(query_len);
        m.seq_lens.push(seq_len);
        m.context_lens.push(context_len);
        m.seq_start_loc.push(seq_end);
        let query_end = m.query_start_loc.last().copied().unwrap_or(0) + query_len;
        m.query_start_loc.push(query_end);
    }
}
