use serde::Serialize;

use crate::free_list::FreeList;
use crate::prefix_cache::{CacheKey, PrefixCache};
use crate::{BlockHash, BlockId, Error, GroupId, Lease, Sealed, Writable};

/// How full a pool is. `used + free == num_blocks`, always.
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
}

/// The blocks of an arena, and who may do what with each.
///
/// A block's life: free -> writable ([`BlockPool::allocate`], one owner) -> sealed ([`BlockPool::seal`]) ->
/// shared ([`BlockPool::share`], [`BlockPool::hit`]) -> free, and evictable if it was published. All operations
/// are O(1) and allocate nothing.
#[derive(Debug)]
pub struct BlockPool {
    /// How many hold each block; 0 is free.
    holders: Vec<u32>,
    free: FreeList,
    cache: PrefixCache,
    cached: u32,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks, to be handed out as 0, 1, 2, ...
    ///
    /// # Errors
    ///
    /// [`Error::NoBlocks`] when `num_blocks` is 0.
    pub fn new(num_blocks: u32) -> Result<Self, Error> {
        if num_blocks == 0 {
            return Err(Error::NoBlocks);
        }
        Ok(Self {
            holders: vec![0; num_blocks as usize],
            free: FreeList::all(num_blocks),
            cache: PrefixCache::new(num_blocks),
            cached: 0,
        })
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let num_blocks = self.num_blocks();
        let free = self.free.len();
        PoolStats { num_blocks, used: num_blocks - free, free, cached: self.cached }
    }

    /// All blocks, free or not.
    #[must_use]
    pub fn num_blocks(&self) -> u32 {
        // The constructor took a u32.
        self.holders.len() as u32
    }

    /// Blocks nobody holds.
    #[must_use]
    pub fn num_free(&self) -> u32 {
        self.free.len()
    }

    /// How many hold `id`; 0 for a free block, or for no block of this pool.
    #[must_use]
    pub fn holders(&self, id: BlockId) -> u32 {
        self.holders.get(id.0 as usize).copied().unwrap_or(0)
    }

    /// Whether `id` is published, that is, can be hit.
    #[must_use]
    pub fn is_published(&self, id: BlockId) -> bool {
        (id.0 < self.num_blocks()) && self.cache.contains(id)
    }

    /// The free blocks in the order in which they will be handed out.
    pub fn free_order(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.free.iter()
    }

    /// The next free block, to be written by the caller alone; what was published of it is forgotten.
    /// `None` when all blocks are held.
    pub fn allocate(&mut self) -> Option<Writable> {
        let id = self.free.pop_front()?;
        if self.cache.remove(id) {
            self.cached -= 1;
        }
        self.holders[id.0 as usize] = 1;
        Some(Writable::new(id))
    }

    /// Ends writing: every slot of the block holds an accepted token. With a `hash` the block is published.
    pub fn seal(&mut self, lease: Writable, publish: Option<(BlockHash, GroupId)>) -> Sealed {
        let id = lease.into_id();
        if let Some((hash, group)) = publish {
            self.cache.insert(id, CacheKey { hash, group });
        }
        Sealed::new(id)
    }

    /// Takes a block that nobody else holds back out of the cache, to be written again; a shared one stays
    /// as it is.
    ///
    /// # Errors
    ///
    /// The lease itself, when others hold the block too.
    pub fn unseal(&mut self, lease: Sealed) -> Result<Writable, Sealed> {
        if self.holders(lease.id()) > 1 {
            return Err(lease);
        }
        let id = lease.into_id();
        self.cache.remove(id);
        Ok(Writable::new(id))
    }

    /// One more lease of a sealed block.
    pub fn share(&mut self, lease: &Sealed) -> Sealed {
        self.holders[lease.id().0 as usize] += 1;
        Sealed::new(lease.id())
    }

    /// The block published first under `hash` in `group`, if there is one. Takes nothing.
    #[must_use]
    pub fn lookup(&self, hash: &BlockHash, group: GroupId) -> Option<BlockId> {
        self.cache.get(&CacheKey { hash: *hash, group })
    }

    /// A lease of the block [`BlockPool::lookup`] finds.
    pub fn hit(&mut self, hash: &BlockHash, group: GroupId) -> Option<Sealed> {
        let id = self.lookup(hash, group)?;
        let holders = &mut self.holders[id.0 as usize];
        if *holders == 0 {
            self.free.remove(id);
            self.cached -= 1;
        }
        *holders += 1;
        Some(Sealed::new(id))
    }

    /// Ends a lease. A block that nobody holds any more becomes free: the very next to be handed out when it
    /// is not published, the last when it is.
    pub fn release(&mut self, lease: impl Into<Lease>) {
        self.release_all([lease.into()]);
    }

    /// Ends several leases. Blocks that become free and are not published will be the next ones handed out, in
    /// the order given here; published ones the last, in the order given too.
    pub fn release_all(&mut self, leases: impl IntoIterator<Item = Lease>) {
        let mut anchor = None;
        for lease in leases {
            let id = lease.into_id();
            let holders = &mut self.holders[id.0 as usize];
            *holders -= 1;
            if *holders > 0 {
                continue;
            }
            if self.cache.contains(id) {
                self.cached += 1;
                self.free.push_back(id);
                continue;
            }
            match anchor {
                None => self.free.push_front(id),
                Some(anchor) => self.free.insert_after(anchor, id),
            }
            anchor = Some(id);
        }
    }

    /// Forgets every published block. Leases are not touched; where there are none, the pool is as new: its blocks will be
    /// handed out as 0, 1, 2, ...
    pub fn clear_cache(&mut self) {
        for id in 0..self.num_blocks() {
            self.cache.remove(BlockId(id));
        }
        self.cached = 0;
        if self.free.len() == self.num_blocks() {
            self.free = FreeList::all(self.num_blocks());
        }
    }
}
