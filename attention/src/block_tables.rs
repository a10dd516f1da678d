//! The block tables of a step, one after the other in one buffer.

use crate::error::AttentionError;
use pagedraft_block_manager::BlockId;
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Unexpected, Visitor};
use serde::ser::{Serialize, SerializeSeq, Serializer};
use std::fmt;

/// One list of blocks for each metadata row, in one buffer that is reused from step to step. In JSON
/// it is a list of lists of block numbers, with -1 for a block that was freed behind the window.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BlockTables {
    blocks: Vec<BlockId>,
    /// The index in `blocks` at which each row ends.
    ends: Vec<u32>,
}

impl Clone for BlockTables {
    fn clone(&self) -> Self {
        Self { blocks: self.blocks.clone(), ends: self.ends.clone() }
    }

    /// Copies into the buffers that `self` has already, so that a step allocates nothing.
    fn clone_from(&mut self, from: &Self) {
        self.blocks.clone_from(&from.blocks);
        self.ends.clone_from(&from.ends);
    }
}

impl BlockTables {
    /// A list without rows.
    #[must_use]
    pub fn new() -> BlockTables {
        BlockTables::default()
    }

    /// Removes all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.ends.clear();
    }

    /// Appends a row.
    pub fn push(&mut self, table: &[BlockId]) {
        self.blocks.extend_from_slice(table);
        self.ends.push(self.blocks.len() as u32);
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The blocks of a row, or `None` if there is no such row.
    #[must_use]
    pub fn get(&self, row: usize) -> Option<&[BlockId]> {
        let end = *self.ends.get(row)? as usize;
        self.blocks.get(self.start(row)..end)
    }

    /// The rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[BlockId]> {
        self.ends.iter().enumerate().map(|(row, &end)| &self.blocks[self.start(row)..end as usize])
    }

    /// Writes the rows into `padded`, which is cleared first. Each is padded with block 0 to `width`
    /// blocks, the shape that a captured graph has. Block 0 may be a live block of some sequence; padding
    /// is never read.
    ///
    /// # Errors
    ///
    /// [`AttentionError::WideTable`] for a row longer than `width`; `padded` is then empty.
    pub fn pad_into(&self, width: usize, padded: &mut BlockTables) -> Result<(), AttentionError> {
        padded.clear();
        let too_wide = self.iter().enumerate().find(|(_, table)| table.len() > width);
        if let Some((row, table)) = too_wide {
            return Err(AttentionError::WideTable { row, blocks: table.len(), width });
        }
        for table in self.iter() {
            padded.blocks.extend_from_slice(table);
            let end = (padded.ends.len() + 1) * width;
            padded.blocks.resize(end, BlockId(0));
            padded.ends.push(end as u32);
        }
        Ok(())
    }

    fn start(&self, row: usize) -> usize {
        if row == 0 { 0 } else { self.ends[row - 1] as usize }
    }
}

/// One row, which serialises as a list of plain numbers.
struct Row<'a>(&'a [BlockId]);

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = |&block: &BlockId| if block == BlockId::FREED { -1 } else { i64::from(block.0) };
        serializer.collect_seq(self.0.iter().map(number))
    }
}

impl Serialize for BlockTables {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut rows = serializer.serialize_seq(Some(self.len()))?;
        for table in self.iter() {
            rows.serialize_element(&Row(table))?;
        }
        rows.end()
    }
}

impl<'de> Deserialize<'de> for BlockTables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BlockTables, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = BlockTables;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of lists of block numbers (-1: freed)")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<BlockTables, A::Error> {
                let mut tables = BlockTables::new();
                while let Some(row) = rows.next_element::<Vec<i64>>()? {
                    for number in row {
                        tables.blocks.push(match u32::try_from(number) {
                            Ok(id) => BlockId(id),
                            Err(_) if number == -1 => BlockId::FREED,
                            Err(_) => {
                                let found = Unexpected::Signed(number);
                                return Err(A::Error::invalid_value(
                                    found,
                                    &"a block number, or -1 for freed",
                                ));
                            }
                        });
                    }
                    tables.ends.push(tables.blocks.len() as u32);
                }
                Ok(tables)
            }
        }
        deserializer.deserialize_seq(Rows)
    }
}
