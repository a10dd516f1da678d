//! What one attention call works on: its rows with their lengths, slots and block tables.

use crate::block_tables::BlockTables;
use crate::error::AttentionError;
use crate::kernel::work::{NO_WINDOW, first_key};
use crate::metadata_row::MetadataRow;
use pagedraft_block_manager::BlockId;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The slot of a token that is not stored.
pub const PAD_SLOT: i64 = -1;

/// Which keys a query of a row sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskKind {
    /// A query sees the keys up to and including its own.
    #[default]
    Causal,
    /// A query sees all keys of the row, those behind it too (block diffusion).
    Bidirectional,
}

/// FlashAttention-style metadata of one step, under the usual names.
///
/// A *metadata row* is one sequence of the attention call. Rows with more than one query token count
/// as prefills (verify rows too) and come first; rows of a single token are decodes, a prefill chunk
/// of one token as well. All lengths count tokens of the row's KV group: a token's index there is its
/// position unless the group is pruned.
///
/// A *pad row* belongs to no sequence; a graph that is replayed for fewer sequences than it was captured
/// for has some. Its lengths are 0, its table is empty and its slots are -1. It is never read, and its
/// output never written.
///
/// The fields are plain data, so that a trace can hold the very object that a step ran with.
/// [`MetadataBuilder`] makes them agree with each other, and [`AttentionMetadata::check`] says whether
/// those of a trace do.
///
/// [`MetadataBuilder`]: crate::builder::MetadataBuilder
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttentionMetadata {
    /// How many rows have more than one query token.
    pub num_prefills: u32,
    /// How many query tokens those rows have together.
    pub num_prefill_tokens: u32,
    /// How many rows have one query token; they have as many tokens together.
    pub num_decode_tokens: u32,
    /// The slot at which K and V of each token are stored: `table[i / block_size] * block_size + i %
    /// block_size`, where i is the token's index in its group; -1 if it is not stored.
    pub slot_mapping: Vec<i64>,
    /// How many keys each row has once the step's own are stored: context + query. There is one exception:
    /// a bidirectional row may have more, because keys may lie behind its queries (a block in the middle of
    /// a canvas).
    pub seq_lens: Vec<u32>,
    /// How many tokens of each row were stored before this step.
    pub context_lens: Vec<u32>,
    /// The index, among the step's tokens, at which each row's query tokens start; then the end of the last
    /// row.
    pub query_start_loc: Vec<u32>,
    /// Running sum of `seq_lens`, from 0.
    pub seq_start_loc: Vec<u32>,
    /// The most query tokens of any row.
    pub max_query_len: u32,
    /// The greatest `seq_lens` of any prefill row; 0 if there is no such row.
    pub max_prefill_seq_len: u32,
    /// The greatest `seq_lens` of any decode row; 0 if there is no such row.
    pub max_decode_seq_len: u32,
    /// The blocks of each row, as many as its length needs.
    pub block_tables: BlockTables,
    /// Whether the step was replayed from a graph (a CUDA graph, or a tape on the CPU).
    pub use_cuda_graph: bool,
    /// The mask of each row; empty when every row is causal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask_kinds: Vec<MaskKind>,
    /// The sliding window W in tokens: the query of index i does not see a key j with j <= i - W. `None`
    /// means that there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// The index of each token of `slot_mapping` in its group; -1 for a pad token and for a token that the
    /// group does not keep. It is empty when the tokens of every row have the indices `context_len,
    /// context_len + 1, ..`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kv_index: Vec<i64>,
}

impl Clone for AttentionMetadata {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        copy.clone_from(self);
        copy
    }

    /// Copies into the buffers that `self` has already, so that handing a step's metadata to a device does
    /// not allocate.
    fn clone_from(&mut self, from: &Self) {
        let Self {
            num_prefills,
            num_prefill_tokens,
            num_decode_tokens,
            slot_mapping,
            seq_lens,
            context_lens,
            query_start_loc,
            seq_start_loc,
            max_query_len,
            max_prefill_seq_len,
            max_decode_seq_len,
            block_tables,
            use_cuda_graph,
            mask_kinds,
            window,
            kv_index,
        } = self;
        *num_prefills = from.num_prefills;
        *num_prefill_tokens = from.num_prefill_tokens;
        *num_decode_tokens = from.num_decode_tokens;
        slot_mapping.clone_from(&from.slot_mapping);
        seq_lens.clone_from(&from.seq_lens);
        context_lens.clone_from(&from.context_lens);
        query_start_loc.clone_from(&from.query_start_loc);
        seq_start_loc.clone_from(&from.seq_start_loc);
        *max_query_len = from.max_query_len;
        *max_prefill_seq_len = from.max_prefill_seq_len;
        *max_decode_seq_len = from.max_decode_seq_len;
        block_tables.clone_from(&from.block_tables);
        *use_cuda_graph = from.use_cuda_graph;
        mask_kinds.clone_from(&from.mask_kinds);
        *window = from.window;
        kv_index.clone_from(&from.kv_index);
    }
}

impl AttentionMetadata {
    /// How many metadata rows there are, pad rows included.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.seq_lens.len()
    }

    /// How many query tokens the rows have together. `slot_mapping` is longer if there are pad tokens in no
    /// row.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.query_start_loc.last().map_or(0, |&end| end as usize)
    }

    /// The mask of a row.
    #[must_use]
    pub fn mask_kind(&self, row: usize) -> MaskKind {
        self.mask_kinds.get(row).copied().unwrap_or_default()
    }

    /// The block tables with every row padded with 0 to `width` blocks, as graphs need them. This
    /// allocates; [`BlockTables::pad_into`] reuses a buffer instead.
    ///
    /// # Errors
    ///
    /// [`AttentionError::WideTable`] for a row longer than `width`.
    pub fn padded_tables(&self, width: usize) -> Result<BlockTables, AttentionError> {
        let mut padded = BlockTables::new();
        self.block_tables.pad_into(width, &mut padded)?;
        Ok(padded)
    }

    /// Re-derives every field from `context_lens`, `query_start_loc` and `block_tables`, and names the
    /// first that differs. It takes time linear in tokens and rows. Three things cannot be derived and are
    /// believed: in a row with a bidirectional mask, a `seq_lens` that is longer; the indices of
    /// `kv_index`; and slots of -1 at the start of a row (tokens that were stored before).
    ///
    /// # Errors
    ///
    /// [`AttentionError::Inconsistent`], [`AttentionError::ShortTable`], [`AttentionError::EmptyWindow`],
    /// [`AttentionError::FreedBlock`] (a block that a query sees), and what
    /// [`MetadataBuilder`](crate::builder::MetadataBuilder) says about rows it cannot build.
    pub fn check(&self, block_size: u32) -> Result<(), AttentionError> {
        let rows = self.num_rows();
        expect("context_lens.len", 0, self.context_lens.len(), rows)?;
        expect("block_tables.len", 0, self.block_tables.len(), rows)?;
        expect("query_start_loc.len", 0, self.query_start_loc.len(), rows + 1)?;
        expect("query_start_loc", 0, self.query_start_loc[0], 0u32)?;
        if !self.mask_kinds.is_empty() {
            expect("mask_kinds.len", 0, self.mask_kinds.len(), rows)?;
        }
        if !self.kv_index.is_empty() {
            expect("kv_index.len", 0, self.kv_index.len(), self.slot_mapping.len())?;
        }
        if self.window == Some(0) {
            return Err(AttentionError::EmptyWindow);
        }

        let mut builder = crate::builder::MetadataBuilder::new(block_size)?;
        let mut index = Vec::new();
        for (row, table) in self.block_tables.iter().enumerate() {
            let (start, end) = (self.query_start_loc[row], self.query_start_loc[row + 1]);
            let limit = u32::try_from(self.slot_mapping.len()).unwrap_or(u32::MAX);
            if end < start || end > limit {
                expect("query_start_loc", row + 1, end, end.clamp(start, limit.max(start)))?;
            }
            if self.seq_lens[row] == 0 {
                builder.push_pad_row(end - start)?;
            } else {
                let tokens = start as usize..end as usize;
                self.indices_of(row, tokens.clone(), &mut index)?;
                let (mask, context_len, query_len) =
                    (self.mask_kind(row), self.context_lens[row], end - start);
                let behind = match mask {
                    MaskKind::Causal => 0,
                    // The number of keys behind the queries is in two fields, `seq_lens` and
                    // `seq_start_loc`. Taking the smaller makes the comparison below find whichever is
                    // wrong.
                    MaskKind::Bidirectional => {
                        let starts = self.seq_start_loc.get(row).zip(self.seq_start_loc.get(row + 1));
                        let by_starts = starts.map_or(0, |(start, end)| end.saturating_sub(*start));
                        let own = context_len.saturating_add(query_len);
                        self.seq_lens[row].min(by_starts).saturating_sub(own)
                    }
                };
                let fresh = self.slot_mapping[tokens]
                    .iter()
                    .zip(&index)
                    .find(|&(&slot, &index)| slot != PAD_SLOT && index != MetadataRow::NOWHERE);
                let kept = index.iter().copied().filter(|&index| index != MetadataRow::NOWHERE);
                let stored = fresh.map_or_else(|| kept.max().map_or(0, |last| last + 1), |fresh| *fresh.1);
                let window = self.window.unwrap_or(NO_WINDOW);
                let seen = (first_key(context_len, window) / block_size) as usize;
                if let Some(at) = table.iter().skip(seen).position(|&block| block == BlockId::FREED) {
                    return Err(AttentionError::FreedBlock { row, entry: seen + at });
                }
                builder.push(MetadataRow {
                    behind,
                    mask,
                    // The builder finds out by itself whether these indices are the default ones.
                    index: Some(&index),
                    stored,
                    ..MetadataRow::causal(context_len, query_len, table)
                })?;
            }
        }
        if let Some(pads) = self.slot_mapping.len().checked_sub(self.num_tokens()) {
            builder.pad_slots(pads);
        }

        let right = builder.finish();
        expect("num_prefills", 0, self.num_prefills, right.num_prefills)?;
        expect("num_prefill_tokens", 0, self.num_prefill_tokens, right.num_prefill_tokens)?;
        expect("num_decode_tokens", 0, self.num_decode_tokens, right.num_decode_tokens)?;
        expect("max_query_len", 0, self.max_query_len, right.max_query_len)?;
        expect("max_prefill_seq_len", 0, self.max_prefill_seq_len, right.max_prefill_seq_len)?;
        expect("max_decode_seq_len", 0, self.max_decode_seq_len, right.max_decode_seq_len)?;
        expect_all("context_lens", &self.context_lens, &right.context_lens)?;
        expect_all("seq_lens", &self.seq_lens, &right.seq_lens)?;
        expect_all("seq_start_loc", &self.seq_start_loc, &right.seq_start_loc)?;
        expect_all("slot_mapping", &self.slot_mapping, &right.slot_mapping)?;
        if !(self.kv_index.is_empty() && right.kv_index.is_empty()) {
            expect_all("kv_index", &self.kv_index, &right.kv_index)?;
        }
        for (row, (found, right)) in self.block_tables.iter().zip(right.block_tables.iter()).enumerate() {
            expect("block_tables[row].len", row, found.len(), right.len())?;
        }
        Ok(())
    }

    /// Writes the index of each token of a row: the one in `kv_index`, or, if that is empty, the one that
    /// follows the context.
    fn indices_of(
        &self,
        row: usize,
        tokens: Range<usize>,
        index: &mut Vec<u32>,
    ) -> Result<(), AttentionError> {
        index.clear();
        for (token, expected) in tokens.zip(i64::from(self.context_lens[row])..) {
            let found = self.kv_index.get(token).copied().unwrap_or(expected);
            index.push(match u32::try_from(found) {
                Ok(index) if index != MetadataRow::NOWHERE => index,
                Err(_) if found == PAD_SLOT => MetadataRow::NOWHERE,
                _ => {
                    return Err(AttentionError::Inconsistent {
                        field: "kv_index",
                        index: token,
                        found,
                        expected,
                    });
                }
            });
        }
        Ok(())
    }
}

fn expect<T: PartialEq + TryInto<i64>>(
    field: &'static str,
    index: usize,
    found: T,
    expected: T,
) -> Result<(), AttentionError> {
    if found == expected {
        return Ok(());
    }
    let number = |n: T| n.try_into().unwrap_or(i64::MAX);
    Err(AttentionError::Inconsistent { field, index, found: number(found), expected: number(expected) })
}

fn expect_all<T: PartialEq + Copy + TryInto<i64>>(
    field: &'static str,
    found: &[T],
    expected: &[T],
) -> Result<(), AttentionError> {
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        expect(field, index, found, expected)?;
    }
    expect(field, found.len().min(expected.len()), found.len(), expected.len())
}
