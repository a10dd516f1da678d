//! Times attention of one layer of the 1.1B shape (32 query heads over 4 key heads, 64 values per head)
//! against a plain read of the same K and V, and the building of metadata. Run it with `cargo bench -p
//! pagedraft-attention`.
//!
//! Cases are interleaved round after round, each with its own read, because on a shared machine figures of
//! different moments cannot be compared. It prints the median, the least and the greatest time, and the
//! processor time. An argument selects the cases whose names contain it. `PAGEDRAFT_ISA` sets the
//! instruction set, `PAGEDRAFT_ROUNDS` the number of rounds, and `PAGEDRAFT_THREADS` the number of threads
//! (1 and 2 if it is not set).
#![allow(clippy::unwrap_used)] // a fault here is a failed bench

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{
    AttentionCall, AttentionMetadata, AttentionScratch, KvDtype, KvLayer, KvLayout, MaskKind,
    MetadataBuilder, TokenRows, WorkList,
};
use pagedraft_block_manager::BlockId;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Instant;

const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const DIM: usize = 64;
const WIDTH: usize = HEADS * DIM;
/// The number of layers in the cache: enough for K and V to come from memory or the shared cache, as in a
/// whole model.
const LAYERS: usize = 22;

/// What one case runs: rows of (context, query) tokens, each over a sequence of its own.
struct Case {
    name: &'static str,
    dtype: KvDtype,
    rows: Vec<(u32, u32)>,
    /// Each query is a metadata row of its own (batch expansion).
    expanded: bool,
    /// The sliding window in tokens. Blocks behind the window of the first query are not in memory.
    window: Option<u32>,
}

impl Case {
    /// The first key that the query of this index sees.
    fn first_key(&self, index: u32) -> u32 {
        self.window.map_or(0, |window| (index + 1).saturating_sub(window))
    }

    /// The blocks of a row that are in memory.
    fn blocks(&self, row: (u32, u32)) -> std::ops::Range<u32> {
        self.first_key(row.0) / 16..(row.0 + row.1).div_ceil(16)
    }
}

/// A case that is ready to run: every layer's cache, the metadata and the buffers.
struct Ready {
    layers: Vec<KvLayer>,
    memory: Vec<u64>,
    metadata: AttentionMetadata,
    work: WorkList,
    q: Vec<f32>,
    out: Vec<f32>,
    kv_bytes: usize,
    flops: f64,
}

fn ready(case: &Case) -> Ready {
    let layout = KvLayout::new(case.dtype, 16, KV_HEADS, DIM).unwrap();
    let num_blocks: u32 = case.rows.iter().map(|&row| case.blocks(row).len() as u32).sum();
    let stride = layout.block_bytes();
    // There is one arena on huge pages, in which the layers of a block follow each other, as in the engine.
    let mut memory = vec![0u64; stride * LAYERS * num_blocks as usize / 8];
    #[cfg(target_os = "linux")]
    {
        let from = memory.as_ptr().addr().next_multiple_of(2 << 20);
        let end = memory.as_ptr_range().end.addr();
        // SAFETY: this only advises the kernel about pages of the arena.
        unsafe { libc::madvise(from as *mut _, end.saturating_sub(from), libc::MADV_HUGEPAGE) };
    }
    let at: *mut u8 = memory.as_mut_ptr().cast();
    let layers: Vec<_> = (0..LAYERS)
        // SAFETY: the memory lives in `Ready`, as long as the views.
        .map(|i| unsafe { KvLayer::new(at.add(i * stride), stride * LAYERS, num_blocks, layout) })
        .collect();

    // Blocks are scattered by a fixed stride that is coprime to their number.
    let step = (1..).map(|i| 617 + i).find(|&s| gcd(s, num_blocks) == 1).unwrap();
    let mut next = 0u32;
    let mut builder = MetadataBuilder::new(16).unwrap();
    let (mut flops, mut kv_tokens) = (0.0, 0);
    for &(context, query) in &case.rows {
        let kept = case.blocks((context, query));
        let table: Vec<_> = (0..kept.end)
            .map(|entry| {
                if entry < kept.start {
                    return BlockId::FREED;
                }
                next += 1;
                BlockId((u64::from(next) * u64::from(step) % u64::from(num_blocks)) as u32)
            })
            .collect();
        let (rows, queries) = if case.expanded { (query, 1) } else { (1, query) };
        for row in 0..rows {
            builder.push_row(context + row, queries, &table, MaskKind::Causal).unwrap();
        }
        let pairs = |i| f64::from(context + i + 1 - case.first_key(context + i));
        flops += (0..query).map(pairs).sum::<f64>() * (HEADS * DIM * 4) as f64;
        kv_tokens += (context + query - case.first_key(context)) as usize;
    }
    builder.set_window(case.window);
    let metadata = builder.finish().clone();
    let values =
        |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 7919) % 1013) as f32 / 506.0 - 1.0).collect() };
    let every_slot: Vec<i64> = (0..i64::from(num_blocks) * 16).collect();
    let kv = values(every_slot.len() * KV_HEADS * DIM);
    let rows = TokenRows::new(&kv, KV_HEADS * DIM);
    for layer in &layers {
        // SAFETY: one thread.
        unsafe { layer.write(Isa::detect(), &every_slot, rows, rows) }.unwrap();
    }
    let mut work = WorkList::new();
    work.plan(&metadata, HEADS, &layers[0]).unwrap();
    let tokens = metadata.num_tokens();
    let kv_bytes = kv_tokens * layout.token_bytes();
    Ready {
        layers,
        memory,
        metadata,
        work,
        q: values(tokens * WIDTH),
        out: vec![0.0; tokens * WIDTH],
        kv_bytes,
        flops,
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The time a job took, from the start of its first thread to the end of its last one, and the processor
/// time of all threads.
#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    cpu: f64,
}

/// The processor time of this thread, which other users of a shared machine stretch less than the elapsed
/// time.
fn cpu_seconds() -> f64 {
    // SAFETY: all zeroes is a timespec.
    let mut t: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `t` is valid for writes.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Runs a job on several threads at once.
fn together(threads: usize, work: &(dyn Fn(usize) + Sync)) -> Took {
    if threads == 1 {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        work(0);
        return Took { wall: start.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu };
    }
    let barrier = Arc::new(Barrier::new(threads));
    let origin = Instant::now();
    let spans: Vec<(f64, f64, f64)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = barrier.clone();
                scope.spawn(move || {
                    barrier.wait();
                    let (start, cpu) = (origin.elapsed().as_secs_f64(), cpu_seconds());
                    work(thread);
                    (start, origin.elapsed().as_secs_f64(), cpu_seconds() - cpu)
                })
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    let start = spans.iter().map(|s| s.0).fold(f64::INFINITY, f64::min);
    let end = spans.iter().map(|s| s.1).fold(0.0, f64::max);
    Took { wall: end - start, cpu: spans.iter().map(|s| s.2).sum() }
}

/// Times the attention of one layer.
fn attention(case: &mut Ready, isa: Isa, threads: usize) -> Took {
    let Ready { layers, metadata, work, q, out, .. } = case;
    let calls: Vec<_> = layers
        .iter()
        .map(|&layer| {
            // The layers run one after the other, as in a model, and overwrite each other's output.
            // SAFETY: the calls run one after the other.
            let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr(), out.len()) };
            AttentionCall::new(isa, metadata, work, layer, 0.125, TokenRows::new(q, WIDTH), out, WIDTH)
                .unwrap()
        })
        .collect();
    let next: Vec<AtomicUsize> = (0..LAYERS).map(|_| AtomicUsize::new(0)).collect();
    let scratch: Vec<_> = (0..threads).map(|_| std::sync::Mutex::new(AttentionScratch::new())).collect();
    let took = together(threads, &|thread| {
        let mut scratch = scratch[thread].lock().unwrap();
        for (call, next) in calls.iter().zip(&next) {
            loop {
                let item = next.fetch_add(1, Ordering::Relaxed);
                if item >= call.num_items() {
                    break;
                }
                // SAFETY: each item is taken once; nobody writes the cache.
                unsafe { call.run_item(item, &mut scratch) };
            }
        }
    });
    a_layer(took)
}

fn a_layer(took: Took) -> Took {
    Took { wall: took.wall / LAYERS as f64, cpu: took.cpu / LAYERS as f64 }
}

/// Times reading as many bytes of each layer's cache once, in order.
fn read(case: &Ready, threads: usize) -> Took {
    let sink = AtomicU64::new(0);
    let took = together(threads, &|thread| {
        let mut sum = 0u64;
        for words in case.memory.chunks_exact(case.kv_bytes / 8) {
            let share = words.len().div_ceil(threads);
            for word in words.chunks(share).nth(thread).unwrap_or(&[]) {
                sum = sum.wrapping_add(*word);
            }
        }
        sink.fetch_add(sum, Ordering::Relaxed);
    });
    std::hint::black_box(sink.into_inner());
    a_layer(took)
}

/// The median, the least and the greatest.
fn spread(times: &mut [f64]) -> (f64, f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0], times[times.len() - 1])
}

fn kernels(isa: Isa, threads: usize, rounds: usize) {
    let bf16 = |name, rows: Vec<(u32, u32)>| Case {
        name,
        dtype: KvDtype::Bf16,
        rows,
        expanded: false,
        window: None,
    };
    let windowed = |name, rows| Case { window: Some(4096), ..bf16(name, rows) };
    let f32 = |name, rows| Case { dtype: KvDtype::F32, ..bf16(name, rows) };
    let cases = [
        bf16("decode, context 128", vec![(127, 1)]),
        bf16("decode, context 2048", vec![(2047, 1)]),
        bf16("verify 5, context 2048", vec![(2043, 5)]),
        bf16("8 decodes, context 512", vec![(511, 1); 8]),
        bf16("8 verify 5, context 512", vec![(507, 5); 8]),
        bf16("8 decodes, context 4096", vec![(4096, 1); 8]),
        bf16("8 verify 5, context 4096", vec![(4096, 5); 8]),
        Case { expanded: true, ..bf16("8 verify 5 expanded, 4096", vec![(4096, 5); 8]) },
        bf16("prefill 512", vec![(0, 512)]),
        bf16("prefill 512 after 1536", vec![(1536, 512)]),
        f32("decode, context 2048, f32", vec![(2047, 1)]),
        f32("prefill 512, f32", vec![(0, 512)]),
        bf16("decode, context 4096", vec![(4095, 1)]),
        windowed("decode, 4096 of 32768", vec![(32_767, 1)]),
        bf16("prefill 512 after 3584", vec![(3584, 512)]),
        windowed("prefill 512, 4096 of 32768", vec![(32_256, 512)]),
    ];
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let cases: Vec<_> = cases.into_iter().filter(|case| case.name.contains(&wanted)).collect();
    println!(
        "\nL shape ({HEADS} heads over {KV_HEADS}, {DIM} values), {isa}, {threads} thread(s); one layer of {LAYERS}; {rounds} rounds, 2 of warm-up"
    );
    println!(
        "{:28} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9} {:>11} {:>9}",
        "case",
        "us",
        "least",
        "greatest",
        "read us",
        "x read",
        "GFLOP/s",
        "cpu us",
        "cpu least",
        "GFLOP/cpu-s",
        "read cpu"
    );
    let mut prepared: Vec<_> = cases.iter().map(ready).collect();
    let mut times = vec![(Vec::new(), Vec::new()); cases.len()];
    for round in 0..rounds + 2 {
        for (case, (attending, reading)) in prepared.iter_mut().zip(&mut times) {
            let pair = (attention(case, isa, threads), read(case, threads));
            if round >= 2 {
                attending.push(pair.0);
                reading.push(pair.1);
            }
        }
    }
    for ((case, ready), (attending, reading)) in cases.iter().zip(&prepared).zip(&times) {
        let mut ratios: Vec<f64> = attending.iter().zip(reading).map(|(a, r)| a.wall / r.wall).collect();
        let (median, least, greatest) = spread(&mut attending.iter().map(|t| t.wall).collect::<Vec<_>>());
        let (cpu, cpu_least, _) = spread(&mut attending.iter().map(|t| t.cpu).collect::<Vec<_>>());
        println!(
            "{:28} {:9.1} {:9.1} {:9.1} {:9.1} {:7.2} {:9.1} {:9.1} {:9.1} {:11.1} {:9.1}",
            case.name,
            median * 1e6,
            least * 1e6,
            greatest * 1e6,
            spread(&mut reading.iter().map(|t| t.wall).collect::<Vec<_>>()).0 * 1e6,
            spread(&mut ratios).0,
            ready.flops / median / 1e9,
            cpu * 1e6,
            cpu_least * 1e6,
            ready.flops / cpu / 1e9,
            spread(&mut reading.iter().map(|t| t.cpu).collect::<Vec<_>>()).0 * 1e6,
        );
    }
}

fn metadata() {
    println!(
        "\nmetadata and work list of a decode step, 512 to 575 tokens a sequence, blocks of 16; 2000 steps"
    );
    println!("{:>6} {:>10} {:>10} {:>10} {:>12}", "rows", "median us", "p99 us", "greatest", "plan median");
    let layout = KvLayout::new(KvDtype::Bf16, 16, KV_HEADS, DIM).unwrap();
    // SAFETY: nothing is read through this view.
    let layer = unsafe { KvLayer::new(std::ptr::null_mut(), layout.block_bytes(), 1 << 20, layout) };
    for rows in [64u32, 256, 1000] {
        let tables: Vec<Vec<_>> =
            (0..rows).map(|r| (0..36).map(|b| BlockId(b * rows + r)).collect()).collect();
        let mut builder = MetadataBuilder::new(16).unwrap();
        let mut work = WorkList::new();
        let (mut building, mut planning) = (Vec::new(), Vec::new());
        for step in 0..2000 {
            let start = Instant::now();
            builder.begin();
            for table in &tables {
                builder.push_row(511 + step % 64, 1, table, MaskKind::Causal).unwrap();
            }
            let built = start.elapsed();
            work.plan(builder.finish(), HEADS, &layer).unwrap();
            building.push(built.as_secs_f64());
            planning.push((start.elapsed() - built).as_secs_f64());
        }
        let (median, _, greatest) = spread(&mut building);
        let p99 = building[building.len() * 99 / 100];
        let plan = spread(&mut planning).0;
        println!(
            "{rows:6} {:10.1} {:10.1} {:10.1} {:12.1}",
            median * 1e6,
            p99 * 1e6,
            greatest * 1e6,
            plan * 1e6
        );
    }
}

fn main() {
    let isa = std::env::var("PAGEDRAFT_ISA").ok().map_or(Isa::detect(), |name| name.parse().unwrap());
    let number = |name| std::env::var(name).ok().map(|n| n.parse().unwrap());
    let rounds = number("PAGEDRAFT_ROUNDS").unwrap_or(15);
    for threads in number("PAGEDRAFT_THREADS").map_or(vec![1, 2], |threads| vec![threads]) {
        kernels(isa, threads, rounds);
    }
    metadata();
}
