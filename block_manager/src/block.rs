use serde::{Serialize, Serializer};

use crate::{Error, GroupId};

/// Name of a block of KV slots of one group: block `b` of a group lies at byte `b * stride` of the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

impl BlockId {
    /// Stands in a block table where the block was given back because it lies wholly behind the window. Nobody
    /// reads such an entry. It is serialised as -1.
    pub const FREED: Self = Self(u32::MAX);
}

impl Serialize for BlockId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::FREED { serializer.serialize_i32(-1) } else { serializer.serialize_u32(self.0) }
    }
}

/// The contents of `src` have to be in `dst` before anything is written in the step.
///
/// Copies are made in the order they are listed, each of the whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct BlockCopy {
    /// The group that both blocks belong to.
    pub group: GroupId,
    /// Where the contents are.
    pub src: BlockId,
    /// The fresh block that gets them.
    pub dst: BlockId,
}

/// Tokens a block: 16, 32 or 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The sizes the kernels are written for.
    pub const ALLOWED: [u32; 3] = [16, 32, 64];

    /// A block size of `tokens` tokens.
    ///
    /// # Errors
    ///
    /// [`Error::BlockSize`] when it is not one of [`BlockSize::ALLOWED`].
    pub fn new(tokens: u32) -> Result<Self, Error> {
        if Self::ALLOWED.contains(&tokens) {
            Ok(Self(tokens))
        } else {
            Err(Error::BlockSize { given: tokens })
        }
    }

    /// Tokens a block.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Blocks that `tokens` tokens need, the last one perhaps not full.
    #[inline]
    #[must_use]
    pub const fn blocks_for(self, tokens: u32) -> u32 {
        tokens.div_ceil(self.0)
    }

    /// Blocks that `tokens` tokens fill to the last slot.
    #[inline]
    #[must_use]
    pub const fn full_blocks(self, tokens: u32) -> u32 {
        tokens / self.0
    }
}

/// The slot of token `index` (its index in its KV group) under a block table:
/// `table[index / block_size] * block_size + index % block_size`.
///
/// `None` when the table is too short, when the block was given back ([`BlockId::FREED`]), or when `block_size`
/// is 0. Slots are `i64` as in the slot mappings of attention metadata, where -1 pads.
#[must_use]
pub fn slot(table: &[BlockId], index: u32, block_size: u32) -> Option<i64> {
    let block = *table.get(index.checked_div(block_size)? as usize)?;
    let first = i64::from(block.0) * i64::from(block_size);
    (block != BlockId::FREED).then(|| first + i64::from(index % block_size))
}
