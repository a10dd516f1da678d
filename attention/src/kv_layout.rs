//! Where each element of K and V lies in a block of the cache.

use crate::error::AttentionError;
use crate::lanes::LANES;

/// The element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// IEEE floating point of 32 bits.
    F32,
    /// IEEE floating point of 16 bits (half precision).
    F16,
    /// The upper 16 bits of an f32.
    Bf16,
}

impl KvDtype {
    /// How many bytes an element has.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::F16 | KvDtype::Bf16 => 2,
        }
    }
}

/// Where the elements lie in one layer's part of a block: for each key head, K and then V of all its
/// tokens.
///
/// ```text
/// block    = [kv_head][ K | V ]
/// K        = [token / 16][d][token % 16]     16 keys side by side, so that a vector of them loads for each d
/// V        = [token][d, padded to 16]        a token's values side by side
/// ```
///
/// A head's part of a block is contiguous, K and V together, so that a work item reads one run of memory
/// per block. The padding of V is written as 0 and never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvLayout {
    dtype: KvDtype,
    block_size: u32,
    kv_heads: usize,
    head_dim: usize,
}

impl KvLayout {
    /// A layout for blocks of 16, 32 or 64 tokens.
    ///
    /// A layout for blocks of 16, 32 or 64 tokens and `kv_heads` heads of `head_dim` values each.
    ///
    /// [`AttentionError::BlockSize`], or [`AttentionError::Shape`] if a number is zero.
    pub fn new(
        dtype: KvDtype,
        block_size: u32,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<KvLayout, AttentionError> {
        if !matches!(block_size, 16 | 32 | 64) {
            return Err(AttentionError::BlockSize { block_size });
        }
        if kv_heads == 0 || head_dim == 0 {
            return Err(AttentionError::Shape { heads: kv_heads, kv_heads, head_dim });
        }
        Ok(KvLayout { dtype, block_size, kv_heads, head_dim })
    }

    /// The type of the elements.
    #[must_use]
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }
    /// How many tokens a block holds.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }
    /// How many key heads there are; there are as many value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }
    /// How many values a head has.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
    /// The distance from one token's row of V to the next, in values: the head dimension rounded up to 16.
    #[must_use]
    pub fn v_stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// How many elements one head has in a block, K and V together.
    #[must_use]
    pub fn head_len(&self) -> usize {
        self.block_size as usize * (self.head_dim + self.v_stride())
    }
    /// How many bytes a block takes per layer.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.kv_heads * self.head_len() * self.dtype.size()
    }
    /// How many bytes a token takes per layer.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        self.block_bytes() / self.block_size as usize
    }

    /// The element of the block at which group number `group` of 16 keys starts; there are `block_size /
    /// 16` groups.
    #[must_use]
    pub fn k_group(&self, head: usize, group: usize) -> usize {
        head * self.head_len() + group * LANES * self.head_dim
    }
    /// The element of the block that holds value `d` of a token's key.
    #[must_use]
    pub fn k_element(&self, head: usize, token: usize, d: usize) -> usize {
        self.k_group(head, token / LANES) + d * LANES + token % LANES
    }
    /// The element of the block at which a token's row of V starts.
    #[must_use]
    pub fn v_row(&self, head: usize, token: usize) -> usize {
        head * self.head_len() + self.block_size as usize * self.head_dim + token * self.v_stride()
    }
}
