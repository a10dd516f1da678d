use serde::Serialize;

/// How full a pool is. `used + free == num_blocks` and `bytes_used + bytes_free == bytes_total`, always.
///
/// With several groups, blocks differ in size. The counts of blocks are then bytes over the smallest stride of a
/// group: `used` rounded up, `cached` rounded down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PoolStats {
    /// All blocks.
    pub num_blocks: u32,
    /// Blocks somebody holds.
    pub used: u32,
    /// Blocks nobody holds.
    pub free: u32,
    /// Free blocks whose contents can still be hit.
    pub cached: u32,
    /// Bytes of the arena.
    pub bytes_total: u64,
    /// Bytes of blocks somebody holds, padding included.
    pub bytes_used: u64,
    /// All other bytes.
    pub bytes_free: u64,
    /// Bytes of free blocks whose contents can still be hit.
    pub bytes_cached: u64,
    /// Free bytes in pages with a held block: only the group that owns such a page can use them.
    pub bytes_fragmented: u64,
}

/// What one KV group has of the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupStats {
    /// Blocks somebody holds.
    pub used: u32,
    /// Free blocks whose contents can still be hit.
    pub cached: u32,
    /// Bytes of a block, without padding.
    pub block_bytes: usize,
}
