//! A step in which all requests decode asks the heap for nothing.
#![allow(clippy::unwrap_used)]

mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pagedraft_scheduler::fake::Script;
use pagedraft_scheduler::{RequestSpec, SchedulerConfig};
use rig::Rig;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_steady_step_allocates_nothing() {
    for (drafts, accepted) in [(0, 0), (3, 2)] {
        let mut rig = Rig::new(SchedulerConfig {
            num_blocks: 4096,
            num_speculative_tokens: drafts,
            ..SchedulerConfig::default()
        });
        for i in 0..64 {
            let prompt = (0..100).map(|t| i * 1000 + t).collect();
            let script = Script { accepted: vec![accepted], ..Script::default() };
            rig.submit(RequestSpec::new(prompt, 600), script);
        }
        while rig.scheduler.stats().waiting > 0 {
            rig.step();
        }
        for _ in 0..2 {
            rig.step();
        }
        // Long enough that every request seals several blocks.
        for _ in 0..100 {
            let before = ALLOCATIONS.get();
            rig.scheduler.step(&mut rig.plan);
            let planned = ALLOCATIONS.get() - before;
            rig.execute();
            let before = ALLOCATIONS.get();
            rig.scheduler.apply(&rig.outcome, &mut rig.applied).unwrap();
            assert_eq!((planned, ALLOCATIONS.get() - before), (0, 0));
            assert_eq!(rig.plan.rows.len(), 64);
        }
    }
}
