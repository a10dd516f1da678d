//! A pool in host memory, or in a file that is mapped into it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use memmap2::{Advice, MmapMut};

use super::options::LocalPool;
use super::pool::{Key, Pool, PoolError};
use crate::cpu::memory::Memory;
use crate::error::ModelError;

/// What the file of a pool begins with. A file that begins otherwise is somebody else's.
const MAGIC: &[u8] = b"pagedraft KV pool\n";
/// The bytes before the first slot of a file: a page.
const HEADER: usize = 4096;

/// The memory of a pool.
enum Backing {
    Memory(Memory<u8>),
    /// The lock on the file lasts as long as the file is open.
    File {
        map: MmapMut,
        _file: File,
    },
}

impl Backing {
    fn slots(&mut self) -> &mut [u8] {
        match self {
            Self::Memory(memory) => memory,
            Self::File { map, .. } => &mut map[HEADER..],
        }
    }
}

/// Memory cut into slots of one size. What is kept takes as many slots as it needs, wherever they are.
pub struct MemoryPool {
    backing: Backing,
    slot: usize,
    free: Vec<u32>,
    kept: HashMap<Key, Kept>,
}

struct Kept {
    slots: Vec<u32>,
    bytes: usize,
}

impl MemoryPool {
    /// A pool of `local.bytes` bytes, in slots of `slot` bytes.
    ///
    /// # Errors
    ///
    /// A size that holds no slot, no memory, or a file that cannot be written, is in use, or is not a pool's.
    pub fn open(local: &LocalPool, slot: usize) -> Result<Self, ModelError> {
        let slots = usize::try_from(local.bytes).unwrap_or(usize::MAX) / slot.max(1);
        let refuse = |why: String| {
            let file = local.file.as_ref().map_or(String::new(), |file| format!(":{}", file.display()));
            Err(ModelError::NoDevice { what: format!("--kv-local-pool {}{file}: {why}", local.bytes) })
        };
        let Some(count) = u32::try_from(slots).ok().filter(|&count| count > 0) else {
            return refuse(format!(
                "a layer's part of a KV block takes {slot} bytes; give the pool room for 1 to {} of them",
                u32::MAX
            ));
        };
        let backing = match &local.file {
            None => match Memory::zeroed(slots * slot) {
                Ok(memory) => Backing::Memory(memory),
                Err(error) => return refuse(format!("{error}; ask for less")),
            },
            Some(path) => match map(path, HEADER + slots * slot) {
                Ok(backing) => backing,
                Err(why) => return refuse(why),
            },
        };
        Ok(Self { backing, slot, free: (0..count).rev().collect(), kept: HashMap::new() })
    }
}

/// Maps a file of `len` bytes, all of which the file system has set aside.
fn map(path: &Path, len: usize) -> Result<Backing, String> {
    let said = |error: std::io::Error| format!("the file cannot be used: {error}");
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(said)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err("another engine uses the file; name another one".to_owned());
        }
        Err(TryLockError::Error(error)) => return Err(said(error)),
    }
    if file.metadata().map_err(said)?.len() > 0 {
        let mut begins = Vec::new();
        (&mut file).take(MAGIC.len() as u64).read_to_end(&mut begins).map_err(said)?;
        if begins != MAGIC {
            return Err(
                "the file exists and is no pool of an earlier run; name another one, or delete it".to_owned()
            );
        }
    }
    // Written out rather than only made long: a full disk is then an error here, and not a fault in the middle of a step.
    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(said)?;
    file.write_all(MAGIC).map_err(said)?;
    let zeros = vec![0; 1 << 20];
    let mut left = len - MAGIC.len();
    while left > 0 {
        let piece = left.min(zeros.len());
        file.write_all(&zeros[..piece])
            .map_err(|error| format!("{error}; {left} of {len} bytes are missing"))?;
        left -= piece;
    }
    // SAFETY: the file is locked against other engines, and as long as the mapping. Another program that cuts it short meanwhile
    // would end this one; its contents are checked when they are read.
    let map = unsafe { MmapMut::map_mut(&file) }.map_err(said)?;
    Ok(Backing::File { map, _file: file })
}

impl Pool for MemoryPool {
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError> {
        let mut slots = self.kept.remove(&key).map_or_else(Vec::new, |kept| kept.slots);
        let needed = bytes.len().div_ceil(self.slot);
        if slots.len() + self.free.len() < needed {
            self.free.append(&mut slots);
            return Err(PoolError::Full);
        }
        while slots.len() > needed {
            self.free.extend(slots.pop());
        }
        while slots.len() < needed {
            slots.extend(self.free.pop());
        }
        let memory = self.backing.slots();
        for (&slot, bytes) in slots.iter().zip(bytes.chunks(self.slot)) {
            let at = slot as usize * self.slot;
            memory[at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.kept.insert(key, Kept { slots, bytes: bytes.len() });
        Ok(())
    }

    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError> {
        let kept = self.kept.get(&key).ok_or(PoolError::Missing)?;
        if kept.bytes != into.len() {
            return Err(PoolError::Length { found: kept.bytes, expected: into.len() });
        }
        let memory = self.backing.slots();
        for (&slot, into) in kept.slots.iter().zip(into.chunks_mut(self.slot)) {
            let at = slot as usize * self.slot;
            into.copy_from_slice(&memory[at..at + into.len()]);
        }
        Ok(())
    }

    /// Has the system read the parts of a file ahead that are not in memory, all at once and meanwhile. Host memory answers at once.
    fn prefetch(&mut self, keys: &[Key]) {
        let Backing::File { map, .. } = &self.backing else { return };
        for kept in keys.iter().filter_map(|key| self.kept.get(key)) {
            for &slot in &kept.slots {
                // It is only advice: a fault of the disk shows when the slot is read.
                let _ = map.advise_range(Advice::WillNeed, HEADER + slot as usize * self.slot, self.slot);
            }
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(mut kept) = self.kept.remove(&key) {
            self.free.append(&mut kept.slots);
        }
    }
}
