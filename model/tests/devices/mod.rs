//! CPU devices with a KV arena of their own.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file takes what it needs; a fault is a failed test"
)]

use std::sync::Arc;

use pagedraft_attention::isa::Isa;
use pagedraft_block_manager::{Arena, BlockSize, GroupId, KvGroup};
use pagedraft_model::Dtype;
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};

/// Tokens a KV block of every test.
pub const BLOCK_SIZE: u32 = 16;

/// A plan of `num_blocks` blocks of each of these groups.
pub fn plan(groups: &[KvGroup], num_blocks: u32) -> Arena {
    Arena::plan(BlockSize::new(BLOCK_SIZE).unwrap(), num_blocks, groups).unwrap()
}

/// A CPU device for these groups, and its arena.
pub fn of_groups(groups: &[KvGroup], options: &CpuOptions, num_blocks: u32) -> (CpuDevice, Arc<KvArena>) {
    let arena = KvArena::new(&plan(groups, num_blocks)).unwrap();
    let ids: Vec<GroupId> = groups.iter().map(|group| group.id).collect();
    (CpuDevice::new(options, &arena, &ids).unwrap(), arena)
}

/// Bytes of a token in one layer of the model.
pub fn token_bytes(config: &ModelConfig, dtype: Dtype) -> usize {
    CpuDevice::kv_layout(config, dtype, BLOCK_SIZE).unwrap().token_bytes()
}

/// A CPU device for a model and for sequences of up to `max_model_len` tokens.
pub fn cpu(
    config: &ModelConfig,
    (isa, threads, dtype): (Isa, usize, Dtype),
    num_blocks: u32,
    max_model_len: usize,
) -> CpuDevice {
    let groups = CpuDevice::kv_groups(config, dtype, BLOCK_SIZE, max_model_len).unwrap();
    of_groups(&groups, &CpuOptions { isa, threads, dtype, block_size: BLOCK_SIZE }, num_blocks).0
}
