//! [Mooncake](https://github.com/kvcache-ai/Mooncake)'s traces: JSON lines with the fields `timestamp`
//! (milliseconds), `input_length`, `output_length`, and `hash_ids`, which has a name for each block of 512
//! prompt tokens; the last block may be cut. A name stands for its block and all blocks before it, so equal
//! names mean equal prefixes.

use std::path::Path;

use super::json_items::JsonItems;
use super::records::{Records, records};
use super::trace_request::TraceRequest;
use super::{DatasetError, Prompt};

/// How many tokens a block has.
const BLOCK: u32 = 512;

pub(super) fn read(path: &Path, keep_failed: bool) -> Result<Records, DatasetError> {
    let mut items = JsonItems::open(path, "mooncake")?;
    Ok(records(move || {
        let Some(item) = items.next_item()? else { return Ok(None) };
        let ids = item.numbers("hash_ids")?;
        let length = item.tokens("input_length")?;
        let blocks = length.div_ceil(BLOCK);
        if ids.len() as u64 != u64::from(blocks) {
            let what = format!(
                "`hash_ids` names {} blocks, but `input_length` {length} is {blocks} blocks of {BLOCK} tokens",
                ids.len()
            );
            return Err(item.error(&what));
        }
        let request = TraceRequest {
            line: item.line,
            time_ns: Some(item.time("timestamp", 1_000_000)?),
            category: None,
            prompt: Prompt::Blocks { length, block_size: BLOCK, ids },
            prompt_tokens: length,
            output_tokens: item.tokens("output_length")?,
        };
        Ok(Some(request.into_record(keep_failed)))
    }))
}
