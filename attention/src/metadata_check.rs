//! Checks the metadata of a trace by deriving it again.

use crate::builder::MetadataBuilder;
use crate::error::AttentionError;
use crate::metadata::{AttentionMetadata, MaskKind, PAD_SLOT};
use crate::metadata_row::MetadataRow;
use crate::window::{NO_WINDOW, first_key};
use pagedraft_block_manager::BlockId;
use std::ops::Range;

impl AttentionMetadata {
    /// Re-derives every field from `context_lens`, `query_start_loc` and `block_tables`, and names the
    /// first that differs. It takes time linear in tokens and rows. Three things cannot be derived and are
    /// believed: in a row with a bidirectional mask, a `seq_lens` that is longer; the indices of
    /// `kv_index`; and slots of -1 at the start of a row (tokens that were stored before).
    ///
    /// # Errors
    ///
    /// [`AttentionError::Inconsistent`], [`AttentionError::ShortTable`], [`AttentionError::EmptyWindow`],
    /// [`AttentionError::FreedBlock`] (a block that a query sees), and what
    /// [`MetadataBuilder`] says about rows it cannot build.
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

        let mut builder = MetadataBuilder::new(block_size)?;
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
