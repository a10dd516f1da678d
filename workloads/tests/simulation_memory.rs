//! The memory of a simulation is bounded by what is in flight, not by the length of the workload.
#![allow(clippy::unwrap_used, clippy::undocumented_unsafe_blocks, reason = "a fault here is a failed test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pagedraft_scheduler::{CostCurve, SchedulerConfig};
use pagedraft_workloads::Error;
use pagedraft_workloads::measures::{Recorder, RecorderOptions};
use pagedraft_workloads::replay::{Incoming, PlannedRequest, RequestLine};
use pagedraft_workloads::sim::{CostModel, Observer, Router, SimOptions, simulate};

struct Counting;

thread_local! {
    /// Bytes in use now, and at most since they were set. Of this thread: the test harness has threads of its own.
    static BYTES: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    let (now, most) = BYTES.get();
    BYTES.set((now + bytes, most.max(now + bytes)));
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(p, layout, size) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Nobody;

impl Observer for Nobody {
    fn line(&mut self, _: &RequestLine) -> Result<(), Error> {
        Ok(())
    }
}

/// The most bytes that a run of so many requests, eight of them in flight at most, has in use at once.
fn most_bytes(requests: u64, max_concurrency: Option<u32>) -> isize {
    let options = SimOptions {
        scheduler: SchedulerConfig { num_blocks: 256, ..SchedulerConfig::default() },
        cost: CostModel {
            target: CostCurve { points: vec![(1, 20_000.0)], ..CostCurve::default() },
            ..CostModel::default()
        },
        speculation: None,
        prune: None,
        enforce_eager: false,
        replicas: 2,
        router: Router::PrefixAware,
        max_concurrency,
        seed: 0,
    };
    let request = |index| PlannedRequest {
        index,
        source_id: None,
        category: None,
        // Eight at once, and 800 ms to serve them.
        arrival_ns: (max_concurrency.is_none()).then_some(index / 8 * 800_000_000),
        prompt: (0..20 + index as u32 % 50).map(|i| index as u32 * 100 + i).collect(),
        text: None,
        max_tokens: 1 + index as u32 % 30,
        until_stop: false,
        expect: None,
    };
    let mut source = (0..requests).map(|index| Ok(Incoming::Request(request(index))));
    let (before, _) = BYTES.get();
    BYTES.set((before, before));
    let options_of_recorder =
        RecorderOptions { items: requests, block_size: 16, ..RecorderOptions::default() };
    let mut recorder = Recorder::new(options_of_recorder);
    simulate(&mut source, &options, &mut recorder, &mut Nobody).unwrap();
    assert_eq!(recorder.done(), requests);
    BYTES.get().1 - before
}

#[test]
fn ten_times_the_requests_take_no_more_memory() {
    for max_concurrency in [None, Some(8)] {
        let few = most_bytes(2_000, max_concurrency);
        let many = most_bytes(20_000, max_concurrency);
        // Both run longer than the minute after which the bins of the timeline are merged.
        assert!(many < few + few / 20, "{few} bytes for 2,000 requests, {many} for 20,000");
    }
}
