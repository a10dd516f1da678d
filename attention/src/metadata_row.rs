//! One row of a step, as a caller describes it to the builder.

use crate::metadata::MaskKind;
use pagedraft_block_manager::BlockId;

/// One metadata row: some query tokens of one sequence in one KV group.
///
/// An ordinary row (a prefill chunk, a verify row, a decode) is [`MetadataRow::causal`]: its queries follow
/// the stored tokens and are themselves stored. The other fields are for rows of a canvas (block
/// diffusion), and of a group that holds fewer tokens than the sequence has:
///
/// ```
/// use pagedraft_attention::{MaskKind, MetadataBuilder, MetadataRow};
/// use pagedraft_block_manager::BlockId;
///
/// // Of a canvas of 24 tokens, the tokens 4, 6 and 7 are computed anew; every token sees all 24.
/// let table = [BlockId(3), BlockId(1)];
/// let row = MetadataRow {
///     behind: 24 - 4 - 3,
///     mask: MaskKind::Bidirectional,
///     index: Some(&[4, 6, 7]),
///     ..MetadataRow::causal(4, 3, &table)
/// };
/// let mut builder = MetadataBuilder::new(16)?;
/// builder.push(row)?;
/// assert_eq!(builder.finish().seq_lens, [24]);
/// assert_eq!(builder.finish().slot_mapping, [52, 54, 55]);
/// # Ok::<(), pagedraft_attention::AttentionError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MetadataRow<'a> {
    /// How many tokens of the group are stored before this step and are not counted in `behind`.
    pub context_len: u32,
    /// The number of query tokens, at least 1.
    pub query_len: u32,
    /// How many keys of the row are neither context nor query: those behind a block in the middle of a
    /// canvas, and those between queries that are not contiguous. More than 0 requires
    /// [`MaskKind::Bidirectional`].
    pub behind: u32,
    /// The blocks of the sequence in the group, in order. Entries that lie wholly behind the window of the
    /// first query may be `BlockId::FREED`.
    pub table: &'a [BlockId],
    /// Which keys the queries see.
    pub mask: MaskKind,
    /// The index of each query token in the group, if the indices are not `context_len, context_len + 1,
    /// ..`. They ascend and are below the row's length; [`MetadataRow::NOWHERE`] stands for a token that
    /// the group does not keep. This requires [`MaskKind::Bidirectional`].
    pub index: Option<&'a [u32]>,
    /// Tokens whose index is below this are in the cache already. They are computed again for the sake of
    /// their output but not stored again, so their slot is -1. It is 0 if every token is to be stored.
    pub stored: u32,
}

impl<'a> MetadataRow<'a> {
    /// Stands in [`index`](Self::index) for a token that the group does not keep.
    pub const NOWHERE: u32 = u32::MAX;

    /// A causal row of `query_len` tokens that follow `context_len` stored tokens and are to be stored
    /// themselves.
    #[must_use]
    pub fn causal(context_len: u32, query_len: u32, table: &'a [BlockId]) -> Self {
        MetadataRow {
            context_len,
            query_len,
            behind: 0,
            table,
            mask: MaskKind::Causal,
            index: None,
            stored: 0,
        }
    }

    /// The explicit indices, or `None` if they are those that the row would have without any.
    pub(crate) fn scattered(&self) -> Option<&'a [u32]> {
        let contiguous = |index: &[u32]| index.iter().zip(self.context_len..).all(|(&a, b)| a == b);
        self.index.filter(|index| index.len() != self.query_len as usize || !contiguous(index))
    }
}
