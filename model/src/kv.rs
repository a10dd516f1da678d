//! How operations and architectures name the KV cache.

use pagedraft_block_manager::{Arena, BlockCopy, GroupId};

use crate::error::ModelError;

/// One layer of one part of a KV group: the place in the cache that an operation reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvRef {
    /// The group, by its id in the architecture's own list ([`Architecture::kv`](crate::Architecture::kv)).
    pub group: GroupId,
    /// The part of the group, by its index in the group's list of parts.
    pub part: u8,
    /// The layer of the model. The part holds it: it is one of the part's set of layers.
    pub layer: u16,
}

impl KvRef {
    /// A layer of part 0 of group 0, which is all that a dense model without windows has.
    #[must_use]
    pub fn dense(layer: u16) -> Self {
        Self { group: GroupId(0), part: 0, layer }
    }
}

/// What some slots of a layer hold, widened to f32: keys and values, or latents in place of keys.
#[derive(Clone, Debug, Default)]
pub struct KvRows {
    /// `[slots, key_width]`.
    pub keys: Vec<f32>,
    /// `[slots, value_width]`.
    pub values: Vec<f32>,
    /// Values of a row of keys.
    pub key_width: usize,
    /// Values of a row of values; 0 if there are none.
    pub value_width: usize,
    /// How many heads a row belongs to.
    pub heads: usize,
    /// The type that they are stored in.
    pub dtype: &'static str,
}

/// What a part of a KV group holds of one token in one layer. How many bytes that takes is the device's choice: see
/// [`Device::token_bytes`](crate::Device::token_bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartShape {
    /// Keys and values of attention heads.
    Heads {
        /// Query heads that read them; a multiple of `kv_heads`.
        heads: usize,
        /// Key and value heads.
        kv_heads: usize,
        /// Values of a head.
        head_dim: usize,
    },
    /// One vector a token in the dtype of the cache: a latent with its rotated key, or a key of an indexer.
    Vectors {
        /// Values of a vector.
        width: usize,
    },
    /// One vector a token in fp8 with an f32 scale, whatever the dtype of the cache: a key of an indexer.
    Fp8Vectors {
        /// Values of a vector.
        width: usize,
        /// Whether the scale is a power of two.
        power_of_two: bool,
    },
    /// A row of f32 values, such as a row of the residual stream that is held between two steps.
    Rows {
        /// Values of a row.
        width: usize,
    },
}

/// The bytes of the arena that a copy reads from and writes to, and how many they are.
///
/// # Errors
///
/// A group or a block that does not exist.
pub(crate) fn copied(plan: &Arena, copy: BlockCopy) -> Result<(usize, usize, usize), ModelError> {
    let bad = |what| ModelError::BadInputs { what };
    let id = copy.group;
    let group = plan.group(id).ok_or_else(|| {
        bad(format!("a block of KV group {} is copied, and the arena has no such group", id.0))
    })?;
    let at = |block: u32| {
        if block < group.num_blocks {
            return Ok(block as usize * group.stride);
        }
        Err(bad(format!("block {block} of KV group {} is copied, and there are {}", id.0, group.num_blocks)))
    };
    Ok((at(copy.src.0)?, at(copy.dst.0)?, group.block_bytes))
}
