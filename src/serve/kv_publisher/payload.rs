//! A batch of events in MessagePack: `[seconds since 1970, [event, ..], 0]`. An event is a map with its type and vLLM's fields.

use pagedraft_engine::session::CacheEvent;
use rmp::encode::{
    ValueWriteError, write_array_len, write_f64, write_map_len, write_nil, write_str, write_uint,
};

/// The batch of some events at some time.
pub fn batch(time: f64, events: &[CacheEvent], block_size: u32) -> Vec<u8> {
    let mut to = Vec::new();
    // Writing to memory does not fail.
    let _ = write(&mut to, time, events, block_size);
    to
}

type Written = Result<(), ValueWriteError>;

fn write(to: &mut Vec<u8>, time: f64, events: &[CacheEvent], block_size: u32) -> Written {
    write_array_len(to, 3)?;
    write_f64(to, time)?;
    write_array_len(to, events.len() as u32)?;
    for event in events {
        match event {
            CacheEvent::Stored { hashes, parent, token_ids } => {
                write_map_len(to, 8)?;
                field(to, "type", "BlockStored")?;
                numbers(to, "block_hashes", hashes.iter().copied())?;
                write_str(to, "parent_block_hash")?;
                match parent {
                    Some(parent) => drop(write_uint(to, *parent)?),
                    None => nil(to)?,
                }
                numbers(to, "token_ids", token_ids.iter().map(|&token| u64::from(token)))?;
                write_str(to, "block_size")?;
                write_uint(to, u64::from(block_size))?;
                for name in ["lora_id", "lora_name"] {
                    write_str(to, name)?;
                    nil(to)?;
                }
                // vLLM's word for the memory that the model reads from, whatever the device is.
                field(to, "medium", "GPU")?;
            }
            CacheEvent::Removed(hash) => {
                write_map_len(to, 3)?;
                field(to, "type", "BlockRemoved")?;
                numbers(to, "block_hashes", [*hash].into_iter())?;
                field(to, "medium", "GPU")?;
            }
            CacheEvent::Cleared => {
                write_map_len(to, 1)?;
                field(to, "type", "AllBlocksCleared")?;
            }
        }
    }
    write_uint(to, 0)?;
    Ok(())
}

fn nil(to: &mut Vec<u8>) -> Written {
    write_nil(to).map_err(ValueWriteError::InvalidMarkerWrite)
}

fn field(to: &mut Vec<u8>, name: &str, value: &str) -> Written {
    write_str(to, name)?;
    write_str(to, value)
}

fn numbers(to: &mut Vec<u8>, name: &str, numbers: impl ExactSizeIterator<Item = u64>) -> Written {
    write_str(to, name)?;
    write_array_len(to, numbers.len() as u32)?;
    for number in numbers {
        write_uint(to, number)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_bytes_that_message_pack_says() {
        let stored = CacheEvent::Stored { hashes: vec![u64::MAX, 5], parent: None, token_ids: vec![1, 300] };
        let bytes = batch(1.5, &[stored, CacheEvent::Removed(7), CacheEvent::Cleared], 1);
        let text = |text: &str| [&[0xa0 | text.len() as u8][..], text.as_bytes()].concat();
        let expected = [
            vec![0x93, 0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0, 0x93, 0x88],
            text("type"),
            text("BlockStored"),
            text("block_hashes"),
            vec![0x92, 0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 5],
            text("parent_block_hash"),
            vec![0xc0],
            text("token_ids"),
            vec![0x92, 1, 0xcd, 1, 44],
            text("block_size"),
            vec![1],
            text("lora_id"),
            vec![0xc0],
            text("lora_name"),
            vec![0xc0],
            text("medium"),
            text("GPU"),
            vec![0x83],
            text("type"),
            text("BlockRemoved"),
            text("block_hashes"),
            vec![0x91, 7],
            text("medium"),
            text("GPU"),
            vec![0x81],
            text("type"),
            text("AllBlocksCleared"),
            vec![0],
        ];
        assert_eq!(bytes, expected.concat());
    }
}
