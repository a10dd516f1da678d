use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use crate::{BlockHash, BlockId, GroupId};

/// What a cached block is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey {
    pub(crate) hash: BlockHash,
    pub(crate) group: GroupId,
}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash.as_u64() ^ u64::from(self.group.0));
    }
}

/// A block hash is uniform already: its own bits are its place in the map.
#[derive(Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: CacheKey,
    /// Blocks of equal contents form a ring in the order of their publication.
    prev: BlockId,
    next: BlockId,
}

/// Which published block holds which contents.
///
/// Blocks of equal contents are not merged (tables only ever grow at their end); a look-up gives the one
/// that was published first.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    first: HashMap<CacheKey, BlockId, BuildHasherDefault<AsIs>>,
    entries: Vec<Option<Entry>>,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: u32) -> Self {
        Self {
            // At most half full: the map then cleans itself up in place and never allocates again.
            first: HashMap::with_capacity_and_hasher(2 * num_blocks as usize, Default::default()),
            entries: vec![None; num_blocks as usize],
        }
    }

    pub(crate) fn get(&self, key: &CacheKey) -> Option<BlockId> {
        self.first.get(key).copied()
    }

    pub(crate) fn contains(&self, id: BlockId) -> bool {
        self.entries[id.0 as usize].is_some()
    }

    /// Publishes `id`, which must not be published yet.
    pub(crate) fn insert(&mut self, id: BlockId, key: CacheKey) {
        debug_assert!(!self.contains(id), "block {} is published already", id.0);
        let first = *self.first.entry(key).or_insert(id);
        let (prev, next) = if first == id {
            (id, id)
        } else {
            let last = self.link(first, |entry| std::mem::replace(&mut entry.prev, id));
            let last = last.unwrap_or(first);
            self.link(last, |entry| entry.next = id);
            (last, first)
        };
        self.entries[id.0 as usize] = Some(Entry { key, prev, next });
    }

    /// Forgets `id`. Its twin published next, if there is one, is found in its place.
    pub(crate) fn remove(&mut self, id: BlockId) -> bool {
        let Some(entry) = self.entries[id.0 as usize].take() else {
            return false;
        };
        if entry.next == id {
            self.first.remove(&entry.key);
            return true;
        }
        self.link(entry.prev, |prev| prev.next = entry.next);
        self.link(entry.next, |next| next.prev = entry.prev);
        if let Some(first) = self.first.get_mut(&entry.key)
            && *first == id
        {
            *first = entry.next;
        }
        true
    }

    fn link<T>(&mut self, id: BlockId, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        self.entries[id.0 as usize].as_mut().map(change)
    }
}
