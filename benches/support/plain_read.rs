//! A plain read of memory by a team of threads: the ceiling that a step of one row is held against.
#![allow(dead_code, reason = "each bench uses its part")]

use std::hint::black_box;
use std::time::Instant;

use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};
use pagedraft_model::cpu::memory::Memory;
use pagedraft_model::cpu::team::{Chunks, Team};

/// Memory to read, as much as a model's weights take.
pub struct PlainRead {
    memory: Memory<u8>,
    isa: Isa,
}

impl PlainRead {
    /// `bytes` bytes, every page touched.
    pub fn new(isa: Isa, bytes: usize) -> PlainRead {
        let mut memory = Memory::zeroed(bytes).expect("memory to read");
        memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        PlainRead { memory, isa }
    }

    /// Seconds that reading all of it once takes.
    pub fn seconds(&self, team: &Team) -> f64 {
        let start = Instant::now();
        read(self.isa, team, &[&self.memory]);
        start.elapsed().as_secs_f64()
    }
}

/// Reads every byte once, in runs of half a MiB that the threads draw.
pub fn read(isa: Isa, team: &Team, memory: &[&[u8]]) {
    let pieces: Vec<&[u8]> = memory.iter().flat_map(|bytes| bytes.chunks(1 << 19)).collect();
    let chunks = Chunks::new(pieces.len(), team.members(), 1);
    team.run(&|_, _| {
        while let Some(run) = chunks.draw() {
            for piece in &pieces[run] {
                black_box(isa.run(Greatest(piece)));
            }
        }
    });
}

/// The greatest of all words of some memory, taken as f32: eight loads in flight.
struct Greatest<'a>(&'a [u8]);

impl Kernel for Greatest<'_> {
    type Output = f32;
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        const AHEAD: usize = 8;
        // SAFETY: whole blocks of the slice are read, unaligned; `Isa::run` enabled the features.
        unsafe {
            let mut most = [L::splat(0.0); AHEAD];
            for block in self.0.chunks_exact(AHEAD * LANES * 4) {
                let at: *const f32 = block.as_ptr().cast();
                for (i, most) in most.iter_mut().enumerate() {
                    *most = most.max(L::load(at.add(i * LANES)));
                }
            }
            most.iter().skip(1).fold(most[0], |a, &b| a.max(b)).max_lane()
        }
    }
}
