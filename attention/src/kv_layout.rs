//! Where each element of K and V lies in a block of the cache.

use crate::error::AttentionError;
use crate::lanes::LANES;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl KvDtype {
    /// Bytes an element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::F16 | KvDtype::Bf16 => 2,
        }
    }
}

/// The inside of one layer's part of a block: for each key head, K and then V of all its tokens.
///
/// ```text
/// block    = [kv_head][ K | V ]
/// K        = [token / 16][d][token % 16]     16 keys side by side, so that a vector of them loads for each d
/// V        = [token][d, padded to 16]        a token's values side by side
/// ```
///
/// A head's part of a block is contiguous, K and V together: a work item reads one run of memory a
/// block. Padding of V is written as 0 and never used.
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
    /// # Errors
    ///
    /// [`AttentionError::BlockSize`], [`AttentionError::Shape`] (a zero).
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

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }
    /// Tokens a block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }
    /// Key and value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }
    /// Values a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }
    /// Values from one token of V to the next: the head dimension rounded up to 16.
    #[must_use]
    pub fn v_stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of one head in a block.
    #[must_use]
    pub fn head_len(&self) -> usize {
        self.block_size as usize * (self.head_dim + self.v_stride())
    }
    /// Bytes of a block in one layer.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.kv_heads * self.head_len() * self.dtype.size()
    }
    /// Bytes of a token in one layer.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        self.block_bytes() / self.block_size as usize
    }

    /// Element of the block at which the 16 keys of a token group (0 .. block_size / 16) start.
    #[must_use]
    pub fn k_group(&self, head: usize, group: usize) -> usize {
        head * self.head_len() + group * LANES * self.head_dim
    }
    /// Element of the block that holds value `d` of a token's key.
    #[must_use]
    pub fn k_element(&self, head: usize, token: usize, d: usize) -> usize {
        self.k_group(head, token / LANES) + d * LANES + token % LANES
    }
    /// Element of the block at which a token's values start.
    #[must_use]
    pub fn v_row(&self, head: usize, token: usize) -> usize {
        head * self.head_len() + self.block_size as usize * self.head_dim + token * self.v_stride()
    }
}
