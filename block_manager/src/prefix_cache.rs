use crate::list::NONE;
use crate::{BlockHash, GroupId};

/// What a cached block is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey {
    pub(crate) hash: BlockHash,
    pub(crate) group: GroupId,
}

/// The published blocks whose hashes fall together, in the order of their publication.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    first: u32,
    last: u32,
}

/// A published block in the list of its bucket.
#[derive(Clone, Copy, Debug)]
struct Entry {
    key: CacheKey,
    prev: u32,
    next: u32,
}

/// Which published block holds which contents: a hash table whose entries lie in one array by block, so that
/// publishing and forgetting are O(1), touch little memory and never ask the heap.
///
/// Blocks of equal contents are not merged (tables only ever grow at their end); a look-up gives the one
/// that was published first.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    buckets: Vec<Bucket>,
    entries: Vec<Option<Entry>>,
}

impl PrefixCache {
    pub(crate) fn new(places: usize) -> Self {
        let empty = Bucket { first: NONE, last: NONE };
        Self { buckets: vec![empty; places.next_power_of_two()], entries: vec![None; places] }
    }

    pub(crate) fn get(&self, key: &CacheKey) -> Option<u32> {
        let mut at = self.buckets[self.bucket(key)].first;
        while let Some(entry) = self.entries.get(at as usize)?.as_ref() {
            if entry.key == *key {
                return Some(at);
            }
            at = entry.next;
        }
        None
    }

    #[inline]
    pub(crate) fn contains(&self, id: u32) -> bool {
        self.entries[id as usize].is_some()
    }

    /// Publishes `id`, which must not be published yet.
    pub(crate) fn insert(&mut self, id: u32, key: CacheKey) {
        debug_assert!(!self.contains(id), "block {} is published already", id);
        let bucket = self.bucket(&key);
        let bucket = &mut self.buckets[bucket];
        let prev = std::mem::replace(&mut bucket.last, id);
        if prev == NONE {
            bucket.first = id;
        } else {
            self.link(prev, |entry| entry.next = id);
        }
        self.entries[id as usize] = Some(Entry { key, prev, next: NONE });
    }

    /// Forgets `id`; the key it was published under.
    pub(crate) fn remove(&mut self, id: u32) -> Option<CacheKey> {
        let Entry { key, prev, next } = self.entries[id as usize].take()?;
        let bucket = self.bucket(&key);
        match prev {
            NONE => self.buckets[bucket].first = next,
            _ => self.link(prev, |entry| entry.next = next),
        }
        match next {
            NONE => self.buckets[bucket].last = prev,
            _ => self.link(next, |entry| entry.prev = prev),
        }
        Some(key)
    }

    /// A block hash is uniform: its own bits choose the bucket.
    fn bucket(&self, key: &CacheKey) -> usize {
        let bits = key.hash.as_u64() ^ u64::from(key.group.0);
        bits as usize & (self.buckets.len() - 1)
    }

    fn link(&mut self, id: u32, change: impl FnOnce(&mut Entry)) {
        if let Some(Some(entry)) = self.entries.get_mut(id as usize) {
            change(entry);
        }
    }
}
