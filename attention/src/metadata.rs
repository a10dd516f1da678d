//! What one attention call works on: its rows with their lengths, slots and block tables.

use crate::block_tables::BlockTables;
use crate::error::AttentionError;
use serde::{Deserialize, Serialize};

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
}
