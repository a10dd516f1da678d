//! The tiers below tier 0, and what lies in which.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::checksum::checksum;
use super::pool::{Key, Pool, PoolError, TierId};

/// After so many faults a pool is not left alone for longer any more.
const MOST_DOUBLINGS: u32 = 20;

/// What happened below tier 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct BelowCounts {
    /// Times that a pool was full.
    pub full: u64,
    /// Things that a pool did not have any more.
    pub missing: u64,
    /// Things that came back in another length.
    pub wrong_length: u64,
    /// Things that came back with other bytes.
    pub wrong_checksum: u64,
    /// Requests that were not answered in time.
    pub timeouts: u64,
    /// Other failures.
    pub failures: u64,
    /// The most cells that lay in host memory of last resort at once.
    pub refuge_peak: u64,
    /// Things that moved from the local to the remote pool.
    pub moved_down: u64,
    /// Prefixes that were dropped, because there was no room.
    pub prefixes_dropped: u64,
}

/// In which order things make room in the local pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// A copy of a cell that tier 0 has too.
    Spare,
    /// A block that the prefix cache has forgotten.
    Prefix,
    /// The only copy of a cell.
    Cell,
}

struct Entry {
    tier: TierId,
    class: Class,
    /// Its place in the order of the local pool.
    stamp: u64,
    bytes: usize,
    checksum: u64,
}

/// A pool, and how it behaves.
struct Guarded {
    id: TierId,
    pool: Box<dyn Pool>,
    faults: u32,
    /// So many cells go elsewhere before it is tried again.
    left_alone: u64,
}

impl Guarded {
    fn fault(&mut self) {
        self.faults = (self.faults + 1).min(MOST_DOUBLINGS);
        self.left_alone = 1 << self.faults;
    }
}

/// The tiers below, with a catalogue of what lies in each. A pool is believed nothing: what it gives back is compared with the length
/// and the checksum of what it was given.
#[derive(Default)]
pub struct Below {
    pools: Vec<Guarded>,
    /// What no pool takes.
    refuge: HashMap<Key, Box<[u8]>>,
    entries: HashMap<Key, Entry>,
    /// What lies in the local pool, what is to make room first in front.
    order: BTreeMap<(Class, u64), Key>,
    clock: u64,
    /// Where something that moves down is copied.
    moving: Vec<u8>,
    /// What a pool fetches ahead.
    ahead: Vec<Key>,
    counts: BelowCounts,
}

impl Below {
    /// Over these pools, the nearest first.
    #[must_use]
    pub fn new(pools: Vec<(TierId, Box<dyn Pool>)>) -> Self {
        let guarded = |(id, pool)| Guarded { id, pool, faults: 0, left_alone: 0 };
        Self { pools: pools.into_iter().map(guarded).collect(), ..Self::default() }
    }

    /// What happened.
    #[must_use]
    pub fn counts(&self) -> BelowCounts {
        self.counts
    }

    /// Where something lies; `None` if it is not below tier 0.
    #[must_use]
    pub fn find(&self, key: Key) -> Option<TierId> {
        self.entries.get(&key).map(|entry| entry.tier)
    }

    /// Keeps a cell. It never fails: what no pool takes stays in host memory.
    pub fn put_cell(&mut self, key: Key, bytes: &[u8]) {
        self.forget(key);
        if !self.put_in(0, key, bytes, Class::Cell) {
            self.put_in_refuge(key, bytes);
        }
    }

    /// Keeps a block that the prefix cache has forgotten; whether it is kept.
    pub fn put_prefix(&mut self, key: Key, bytes: &[u8]) -> bool {
        self.forget(key);
        self.put_in(0, key, bytes, Class::Prefix)
    }

    /// Reads something into `into`. Says where it lay.
    ///
    /// # Errors
    ///
    /// It is lost, and forgotten.
    pub fn get(&mut self, key: Key, into: &mut [u8]) -> Result<TierId, PoolError> {
        let Some(entry) = self.entries.get(&key) else { return Err(PoolError::Missing) };
        let (tier, sum) = (entry.tier, entry.checksum);
        let expected = entry.bytes;
        let got = match self.pools.iter_mut().find(|guarded| guarded.id == tier) {
            _ if expected != into.len() => Err(PoolError::Length { found: expected, expected: into.len() }),
            Some(guarded) => guarded.pool.get(key, into),
            None => match self.refuge.get(&key) {
                Some(bytes) => {
                    into.copy_from_slice(bytes);
                    Ok(())
                }
                None => Err(PoolError::Missing),
            },
        };
        let got = got.and_then(|()| if checksum(into) == sum { Ok(()) } else { Err(PoolError::Checksum) });
        match got {
            Ok(()) => Ok(tier),
            Err(error) => {
                self.note_fault(tier, &error);
                self.forget(key);
                Err(error)
            }
        }
    }

    /// Says whether tier 0 has a copy of a cell too, so that this one may go first.
    pub fn set_spare(&mut self, key: Key, spare: bool) {
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let class = if spare { Class::Spare } else { Class::Cell };
        if entry.tier == TierId::LocalPool {
            self.order.remove(&(entry.class, entry.stamp));
            self.order.insert((class, self.clock), key);
        }
        (entry.class, entry.stamp) = (class, self.clock);
        if spare && entry.tier == TierId::Refuge {
            self.forget(key);
        }
    }

    /// Drops something, if it is there.
    pub fn forget(&mut self, key: Key) {
        let Some(entry) = self.entries.remove(&key) else { return };
        if entry.tier == TierId::LocalPool {
            self.order.remove(&(entry.class, entry.stamp));
        }
        match self.pools.iter_mut().find(|guarded| guarded.id == entry.tier) {
            Some(guarded) => guarded.pool.forget(key),
            None => drop(self.refuge.remove(&key)),
        }
    }

    /// Drops every block that the prefix cache has forgotten.
    pub fn forget_prefixes(&mut self) {
        let prefixes: Vec<Key> =
            self.entries.keys().filter(|key| matches!(key, Key::Prefix(_))).copied().collect();
        prefixes.into_iter().for_each(|key| self.forget(key));
    }

    /// Has each pool fetch those of these cells ahead that it has.
    pub fn prefetch(&mut self, keys: &[Key]) {
        let Self { pools, entries, ahead, .. } = self;
        for guarded in pools {
            let own =
                keys.iter().filter(|key| entries.get(key).is_some_and(|entry| entry.tier == guarded.id));
            ahead.clear();
            ahead.extend(own);
            if !ahead.is_empty() {
                guarded.pool.prefetch(ahead);
            }
        }
    }

    /// Whether a pool is reached through a connection.
    #[must_use]
    pub fn has_remote(&self) -> bool {
        self.pools.iter().any(|guarded| guarded.id == TierId::RemotePool)
    }

    /// Puts something into the first pool from the `first` on that takes it.
    fn put_in(&mut self, first: usize, key: Key, bytes: &[u8], class: Class) -> bool {
        for at in first..self.pools.len() {
            let guarded = &mut self.pools[at];
            let id = guarded.id;
            if guarded.left_alone > 0 {
                guarded.left_alone -= 1;
                continue;
            }
            loop {
                match self.pools[at].pool.put(key, bytes) {
                    Ok(()) => {
                        self.enter(key, bytes, id, class);
                        return true;
                    }
                    Err(PoolError::Full) if id == TierId::LocalPool && self.make_room(class) => {}
                    Err(PoolError::Full) => {
                        self.counts.full += 1;
                        break;
                    }
                    Err(error) => {
                        self.note_fault(id, &error);
                        break;
                    }
                }
            }
        }
        false
    }

    fn enter(&mut self, key: Key, bytes: &[u8], tier: TierId, class: Class) {
        self.clock += 1;
        let stamp = self.clock;
        if tier == TierId::LocalPool {
            self.order.insert((class, stamp), key);
        }
        self.entries.insert(key, Entry { tier, class, stamp, bytes: bytes.len(), checksum: checksum(bytes) });
    }

    /// Takes something of the local pool away for a thing of class `class`; `false` if nothing may go.
    fn make_room(&mut self, class: Class) -> bool {
        let Some((&(victim, stamp), &key)) = self.order.first_key_value() else { return false };
        let has_remote = self.has_remote();
        if victim == Class::Spare {
            self.forget(key);
            return true;
        }
        // Without a pool behind it a prefix makes room for any other, and the only copy of a cell for nothing.
        if victim == Class::Cell && (class == Class::Prefix || !has_remote) {
            return false;
        }
        let Some(entry) = self.entries.get(&key) else {
            self.order.remove(&(victim, stamp));
            return true;
        };
        let mut moving = std::mem::take(&mut self.moving);
        moving.resize(entry.bytes, 0);
        let got = if has_remote { self.get(key, &mut moving).map(drop) } else { Ok(()) };
        self.forget(key);
        let mut moved = false;
        if got.is_ok() {
            let behind = self.pools.iter().position(|guarded| guarded.id == TierId::RemotePool);
            moved = behind.is_some_and(|at| self.put_in(at, key, &moving, victim));
            if !moved && victim == Class::Cell {
                self.put_in_refuge(key, &moving);
            }
        }
        self.counts.moved_down += u64::from(moved);
        self.counts.prefixes_dropped += u64::from(!moved && victim == Class::Prefix);
        self.moving = moving;
        true
    }

    fn put_in_refuge(&mut self, key: Key, bytes: &[u8]) {
        self.refuge.insert(key, bytes.into());
        self.counts.refuge_peak = self.counts.refuge_peak.max(self.refuge.len() as u64);
        self.enter(key, bytes, TierId::Refuge, Class::Cell);
    }

    fn note_fault(&mut self, tier: TierId, error: &PoolError) {
        let counts = &mut self.counts;
        let counted = match error {
            PoolError::Full => &mut counts.full,
            PoolError::Missing => &mut counts.missing,
            PoolError::Length { .. } => &mut counts.wrong_length,
            PoolError::Checksum => &mut counts.wrong_checksum,
            PoolError::Timeout => &mut counts.timeouts,
            PoolError::Failed(_) => &mut counts.failures,
        };
        *counted += 1;
        tracing::warn!(?tier, %error, "a KV tier has a fault");
        if let Some(guarded) = self.pools.iter_mut().find(|guarded| guarded.id == tier) {
            guarded.fault();
        }
    }
}
