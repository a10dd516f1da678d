//! Blocks that the prefix cache has forgotten: they go down whole, and come back.

use std::sync::Arc;

use pagedraft_block_manager::{BlockHash, GroupId};

use super::frames::Tiers;
use super::pool::Key;
use crate::cpu::KvArena;

/// Where the indexer keys of blocks lie.
pub(crate) struct IndexerKeys {
    arena: Arc<KvArena>,
    group: GroupId,
}

impl IndexerKeys {
    /// The bytes of a block, and where they begin; `None` of a block that does not exist.
    fn of(&self, block: u32) -> Option<(*mut u8, usize)> {
        let group = self.arena.plan().group(self.group).filter(|group| block < group.num_blocks)?;
        Some((self.arena.base().wrapping_add(block as usize * group.stride), group.block_bytes))
    }
}

impl Tiers {
    /// Says where the indexer keys of the same blocks are.
    pub(crate) fn set_indexer_keys(&mut self, arena: Arc<KvArena>, group: GroupId) {
        self.indexer_keys = Some(IndexerKeys { arena, group });
    }

    /// Keeps a block whose contents the prefix cache has forgotten, under the hash of its contents, before anything of it is written
    /// anew. To be called between steps. Whether it is kept.
    pub fn save_prefix(&mut self, hash: &BlockHash, block: u32) -> bool {
        let Some((keys, key_bytes)) = self.indexer_keys.as_ref().and_then(|keys| keys.of(block)) else {
            return false;
        };
        let cell = self.layout().block_bytes();
        let mut bytes = vec![0; key_bytes + self.num_layers() * cell];
        let (own, latents) = bytes.split_at_mut(key_bytes);
        // SAFETY: the block lies in the arena, and no operation is running.
        unsafe { std::ptr::copy_nonoverlapping(keys, own.as_mut_ptr(), key_bytes) };
        for (layer, latents) in latents.chunks_exact_mut(cell).enumerate() {
            if !self.has_cell(layer, block) || !self.get_cell(layer, block, latents) {
                return false;
            }
        }
        let kept = self.below.put_prefix(Key::Prefix(*hash), &bytes);
        self.counts.prefixes_saved += u64::from(kept);
        kept
    }

    /// Whether a block is kept under this hash.
    #[must_use]
    pub fn has_prefix(&self, hash: &BlockHash) -> bool {
        self.below.find(Key::Prefix(*hash)).is_some()
    }

    /// Writes the contents that are kept under a hash into a block, which nobody uses. To be called between steps. Whether they came
    /// back as they were.
    pub fn restore_prefix(&mut self, hash: &BlockHash, block: u32) -> bool {
        let Some((keys, key_bytes)) = self.indexer_keys.as_ref().and_then(|keys| keys.of(block)) else {
            return false;
        };
        let cell = self.layout().block_bytes();
        let mut bytes = vec![0; key_bytes + self.num_layers() * cell];
        if self.below.get(Key::Prefix(*hash), &mut bytes).is_err() {
            return false;
        }
        let (own, latents) = bytes.split_at(key_bytes);
        // SAFETY: the block lies in the arena, and no operation is running.
        unsafe { std::ptr::copy_nonoverlapping(own.as_ptr(), keys, key_bytes) };
        for (layer, latents) in latents.chunks_exact(cell).enumerate() {
            self.put_cell(layer, block, latents);
        }
        // The prefix cache has it again: it will go down anew when it is forgotten again.
        self.below.forget(Key::Prefix(*hash));
        self.counts.prefixes_restored += 1;
        true
    }

    /// Drops every block that the prefix cache has forgotten.
    pub fn forget_prefixes(&mut self) {
        self.below.forget_prefixes();
    }
}
