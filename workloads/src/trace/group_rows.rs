//! What a step did in a KV group of the target, as a line has it.

use pagedraft_attention::BlockTables;
use pagedraft_attention::metadata::AttentionMetadata;
use serde::{Serialize, Serializer};

/// The metadata of a step in one KV group of the target. Its rows are the step's metadata rows, so that of these fields only those
/// that differ from group to group are written.
#[derive(Clone, Copy, Debug)]
pub struct GroupRows<'a>(pub &'a AttentionMetadata);

#[derive(Serialize)]
struct Written<'a> {
    slot_mapping: &'a [i64],
    seq_lens: &'a [u32],
    context_lens: &'a [u32],
    block_tables: &'a BlockTables,
    kv_index: Option<&'a [i64]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
}

impl Serialize for GroupRows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let metadata = self.0;
        let written = Written {
            slot_mapping: &metadata.slot_mapping,
            seq_lens: &metadata.seq_lens,
            context_lens: &metadata.context_lens,
            block_tables: &metadata.block_tables,
            kv_index: Some(&metadata.kv_index[..]).filter(|index| !index.is_empty()),
            window: metadata.window,
        };
        written.serialize(serializer)
    }
}
