//! The shape that attention kernels are compiled for, and the memory that follows from it.

use crate::error::AttentionError;

/// A 16-bit or 8-bit number type of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// The upper 16 bits of an f32.
    Bf16,
    /// IEEE floating point of 16 bits (half precision).
    F16,
    /// 8 bits (e4m3), with an f32 scale for each token and head. It is for the KV cache only.
    Fp8,
}

impl Element {
    /// How many bytes a number has.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::Fp8 => 1,
        }
    }

    /// The name that the CUDA sources give it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Fp8 => "fp8",
        }
    }
}

/// The heads, the block size and the number types. A module is compiled for each such shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    block_size: u32,
    act: Element,
    kv: Element,
}

impl AttentionShape {
    /// How many keys a tile has.
    pub const TILE: u32 = 64;
    /// How many keys a span has. Contexts are cut at multiples of it.
    pub const SPAN: u32 = 256;
    /// The numbers of rows (queries times heads of a key head) that an item may have. There is a kernel for each.
    pub const ROWS: [u32; 3] = [16, 32, 64];
    /// How many 32-bit words an item has.
    pub const ITEM_WORDS: usize = 12;

    /// A shape for which there are kernels: the head dimension is a multiple of 16 up to 128, a key head has up to 16 query
    /// heads, and `kv` is `act` or fp8.
    ///
    /// # Errors
    ///
    /// [`AttentionError::BlockSize`], [`AttentionError::Shape`] or [`AttentionError::NoCudaKernel`].
    pub fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        block_size: u32,
        act: Element,
        kv: Element,
    ) -> Result<Self, AttentionError> {
        if !matches!(block_size, 16 | 32 | 64) {
            return Err(AttentionError::BlockSize { block_size });
        }
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Shape { heads, kv_heads, head_dim });
        }
        let group = heads / kv_heads;
        let fits =
            head_dim.is_multiple_of(16) && (16..=128).contains(&head_dim) && group <= 16 && heads <= 65_535;
        if !fits || act == Element::Fp8 || (kv != act && kv != Element::Fp8) {
            let (act, kv) = (act.name(), kv.name());
            return Err(AttentionError::NoCudaKernel { head_dim, group, act, kv });
        }
        Ok(Self {
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            block_size,
            act,
            kv,
        })
    }

    /// How many query heads read one key head.
    #[must_use]
    pub const fn group(&self) -> u32 {
        self.heads / self.kv_heads
    }
    /// How many query heads there are.
    #[must_use]
    pub const fn heads(&self) -> u32 {
        self.heads
    }
    /// How many key heads there are.
    #[must_use]
    pub const fn kv_heads(&self) -> u32 {
        self.kv_heads
    }
    /// How many values a head has.
    #[must_use]
    pub const fn head_dim(&self) -> u32 {
        self.head_dim
    }
    /// How many tokens a block holds.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The macros that a module of this shape is compiled with.
    #[must_use]
    pub fn defines(&self) -> Vec<String> {
        vec![
            format!("-DACT={}", self.act.name()),
            format!("-DKV={}", self.kv.name()),
            format!("-DHEADS={}", self.heads),
            format!("-DKV_HEADS={}", self.kv_heads),
            format!("-DHEAD_DIM={}", self.head_dim),
            format!("-DBLOCK_SIZE={}", self.block_size),
        ]
    }

    /// How many bytes one layer's part of a block has.
    #[must_use]
    pub const fn part_bytes(&self) -> usize {
        let scales = if matches!(self.kv, Element::Fp8) { 8 } else { 0 };
        let token = 2 * self.head_dim as usize * self.kv.size() + scales;
        self.kv_heads as usize * self.block_size as usize * token
    }

    /// The least of [`ROWS`](Self::ROWS) that holds `queries` query tokens, or the greatest if none does.
    #[must_use]
    pub fn rows_for(&self, queries: u32) -> u32 {
        let wanted = queries.saturating_mul(self.group());
        Self::ROWS.into_iter().find(|&rows| rows >= wanted).unwrap_or(64)
    }

    /// The bytes of dynamic shared memory of `attention_{rows}`.
    #[must_use]
    pub const fn shared_bytes(&self, rows: u32) -> u32 {
        let chunks = self.head_dim / 8;
        let row = if chunks.is_power_of_two() { chunks } else { chunks | 1 } * 16;
        let tile = Self::TILE * row;
        let kv = match self.kv {
            Element::Fp8 => 2 * tile + 4 * Self::TILE * self.head_dim + 4 * Self::TILE * 4,
            _ => 4 * tile,
        };
        // The summands are the queries, the keys and values, the weights, the greatest scores and sums of 4 warps, and the
        // blocks of two tiles.
        rows * row + kv + rows * Self::TILE * 2 + 2 * 4 * rows * 4 + 32
    }

    /// The number of blocks of `attention_{rows}` that one multiprocessor runs at once. It is limited by registers and by
    /// 227 KiB of shared memory.
    #[must_use]
    pub const fn blocks_at_once(&self, rows: u32) -> u32 {
        let by_memory = 227 * 1024 / (self.shared_bytes(rows) + 1024 + 128);
        let by_registers = if rows == 16 { 3 } else { 2 };
        if by_memory < by_registers { if by_memory == 0 { 1 } else { by_memory } } else { by_registers }
    }

    /// The number of f32 values of the workspace `partial` that a slot takes.
    #[must_use]
    pub const fn slot_values(&self, rows: u32) -> usize {
        self.kv_heads as usize * rows as usize * (self.head_dim as usize + 2)
    }
}
