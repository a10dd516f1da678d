//! What fetching ahead saves where the local pool is a file that the system does not have in memory.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use pagedraft_model::tiers::{Key, LocalPool, MemoryPool, Pool, PoolError, TierId, TierOptions};

use super::{BLOCKS, SIZE, World, of, trace};

/// A pool that fetches nothing ahead.
struct Late(MemoryPool);

impl Pool for Late {
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError> {
        self.0.put(key, bytes)
    }

    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError> {
        self.0.get(key, into)
    }

    fn forget(&mut self, key: Key) {
        self.0.forget(key);
    }
}

/// Has the system drop what it holds of a file in memory.
fn cool(path: &Path) {
    let file = File::open(path).expect("the pool's file");
    file.sync_data().expect("a disk");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the maps of this process");
    let name = path.to_str().expect("a plain name");
    for line in maps.lines().filter(|line| line.ends_with(name)) {
        let ends = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [ends.0, ends.1].map(|end| usize::from_str_radix(end, 16).expect("an address"));
        // SAFETY: the range is a shared mapping of the file, which was just written out: its pages are read from there again.
        unsafe { libc::madvise(from as *mut _, to - from, libc::MADV_DONTNEED) };
    }
    // SAFETY: the file is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

pub fn print(rounds: usize, threads: usize, cell: usize) {
    let path = |name: &str| -> PathBuf {
        std::env::temp_dir().join(format!("pagedraft-bench-cold-{name}-{}", std::process::id()))
    };
    let world = |name: &str, ahead: bool| {
        let local = LocalPool { bytes: u64::from(BLOCKS) * 4 * cell as u64, file: Some(path(name)) };
        let pool = MemoryPool::open(&local, cell).expect("a pool");
        let pool: Box<dyn Pool> = if ahead { Box::new(pool) } else { Box::new(Late(pool)) };
        let pools = vec![(TierId::LocalPool, pool)];
        World::new(threads, Some(TierOptions { frames: Some(BLOCKS / 10), pools, ..TierOptions::default() }))
    };
    let mut worlds = [("ahead", world("ahead", true)), ("late", world("late", false))];
    let (mut times, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
    for (round, blocks) in trace(rounds + 3, true, 6).iter().enumerate() {
        let keys: Vec<u32> = blocks.iter().flat_map(|b| (0..10).map(move |i| b * SIZE + i)).collect();
        let mut taken = [0.0; 2];
        for at in (0..2).map(|at| (at + round) % 2) {
            cool(&path(worlds[at].0));
            taken[at] = worlds[at].1.step(&keys) * 1e3;
        }
        if round >= 3 {
            times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
            ratios.push(taken[1] / taken[0]);
        }
    }
    println!("\ndecode step, 10 % in tier 0, a local pool in a file that is not in memory, {rounds} rounds");
    println!("| | ms, median | ms, least |\n|---|---|---|");
    for ((name, _), times) in worlds.iter().zip(times) {
        let (median, least) = of(times);
        println!("| {name} | {median:.1} | {least:.1} |");
    }
    println!("late to ahead, median {:.2}", of(ratios).0);
    for (name, _) in worlds {
        // What is left behind in a temporary directory does no harm.
        let _ = std::fs::remove_file(path(name));
    }
}
