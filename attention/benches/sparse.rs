//! Sparse attention of one layer on one thread: 16 heads over latents of 512 + 64 values, an indexer of 16 heads of 128 values,
//! 2,048 keys chosen, bf16, random values, blocks of 16 tokens in random order. Run it with `cargo bench --bench sparse`; an
//! argument selects one of its parts, `decode`, `prefill`, `short`, `choice` and `memory`.
//!
//! Times are processor times of the thread, because machines are shared. What is compared runs in turn, round after round;
//! printed are the least and the median.
//!
//! *Dense* is the same attention over all keys. Two ways to compute it are timed: *absorbed*, the kernel of sparse attention
//! with every key in its list, and *expanded*, the paged kernel of dense models over the keys and values of all heads, with 160
//! values a head: 192 for a key and 128 for a value cost as many multiply-adds. The expansion itself is left out of its time.
//!
//! A prefill's time is the sum over its rows. A row's time grows linearly with the keys that it sees, but for the first 2,048 keys,
//! so chunks of 64 rows are timed at 2,048 keys and at nine contexts, evenly spaced, and summed by the trapezoidal rule.
#![allow(clippy::unwrap_used, reason = "a fault here is a failed bench")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use pagedraft_attention::isa::Isa;
use pagedraft_attention::sparse::{
    Candidates, IndexShape, LatentCall, LatentScratch, LatentShape, SelectCall, SelectScratch, SelectionView,
    SparseRows, VectorDtype, VectorLayer, VectorLayout,
};
use pagedraft_attention::{
    AttentionCall, AttentionMetadata, AttentionScratch, KvDtype, KvLayer, KvLayout, MaskKind,
    MetadataBuilder, TokenRows, WorkList,
};
use pagedraft_block_manager::BlockId;

const HEADS: usize = 16;
const RANK: usize = 512;
const ROPE: usize = 64;
const INDEX_HEADS: usize = 16;
const INDEX_DIM: usize = 128;
const TOPK: usize = 2048;
const BLOCK: usize = 16;
/// Values of a head of the expanded form: the mean of 192 and 128.
const EXPANDED: usize = 160;
const ROUNDS: usize = 5;
const DECODE_ROUNDS: usize = 15;
/// Rows of a chunk whose time is measured.
const CHUNK: usize = 64;
/// Rows of a step whose memory is measured.
const STEP: usize = 2048;

/// Counts the bytes that are allocated, and the most so far.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = BYTES.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| random.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
}

/// Microseconds of processor time that `run` takes.
fn timed(run: impl FnOnce()) -> f64 {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the place is valid.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
    };
    let start = now();
    run();
    now() - start
}

/// The least and the median of some times.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

/// Zeroed memory on huge pages, as the engine's arena is.
fn on_huge_pages(bytes: usize) -> Vec<u64> {
    let memory = vec![0u64; bytes.div_ceil(8)];
    #[cfg(target_os = "linux")]
    {
        let from = memory.as_ptr().addr().next_multiple_of(2 << 20);
        let end = memory.as_ptr_range().end.addr();
        // SAFETY: this only advises the kernel about pages of the memory.
        unsafe { libc::madvise(from as *mut _, end.saturating_sub(from), libc::MADV_HUGEPAGE) };
    }
    memory
}

/// A sequence's cache in one layer.
struct Cache {
    _memory: [Vec<u64>; 2],
    keys: VectorLayer,
    latents: VectorLayer,
    table: Vec<BlockId>,
}

impl Cache {
    fn new(isa: Isa, tokens: usize) -> Cache {
        let blocks = tokens.div_ceil(BLOCK);
        let mut table: Vec<BlockId> = (0..blocks as u32).map(BlockId).collect();
        let mut random = Random(9);
        (1..blocks).for_each(|i| table.swap(i, random.next() as usize % (i + 1)));
        let make = |width: usize| {
            let layout = VectorLayout::new(VectorDtype::Plain(KvDtype::Bf16), BLOCK as u32, width).unwrap();
            let mut memory = on_huge_pages(layout.block_bytes() * blocks);
            let at = memory.as_mut_ptr().cast();
            // SAFETY: the memory is returned beside the view.
            let layer = unsafe { VectorLayer::new(at, layout.block_bytes(), blocks as u32, layout) };
            for block in 0..blocks {
                let slots: Vec<i64> = (0..BLOCK).map(|i| (block * BLOCK + i) as i64).collect();
                let some = values(BLOCK * width, block as u64);
                // SAFETY: one thread.
                unsafe { layer.write(isa, &slots, TokenRows::new(&some, width)) }.unwrap();
            }
            (memory, layer)
        };
        let ((key_memory, keys), (latent_memory, latents)) = (make(INDEX_DIM), make(RANK + ROPE));
        Cache { _memory: [key_memory, latent_memory], keys, latents, table }
    }
}

/// Some query tokens at the end of a context: their queries, and room for what is chosen and computed.
struct Step {
    isa: Isa,
    metadata: AttentionMetadata,
    rows: SparseRows,
    index_q: Vec<f32>,
    index_weights: Vec<f32>,
    absorbed: Vec<f32>,
    rotated: Vec<f32>,
    positions: Vec<u32>,
    lens: Vec<u32>,
    k: usize,
    out: Vec<f32>,
}

impl Step {
    fn new(isa: Isa, cache: &Cache, context: usize, rows: usize, k: usize) -> Step {
        let mut builder = MetadataBuilder::new(BLOCK as u32).unwrap();
        builder.begin();
        let blocks = &cache.table[..context.div_ceil(BLOCK)];
        builder.push_row((context - rows) as u32, rows as u32, blocks, MaskKind::Causal).unwrap();
        let metadata = builder.finish().clone();
        let mut plan = SparseRows::new();
        plan.plan(&metadata, BLOCK as u32, cache.keys.num_blocks()).unwrap();
        Step {
            isa,
            metadata,
            rows: plan,
            index_q: values(rows * INDEX_HEADS * INDEX_DIM, 1),
            index_weights: values(rows * INDEX_HEADS, 2),
            absorbed: values(rows * HEADS * RANK, 3),
            rotated: values(rows * HEADS * ROPE, 4),
            positions: vec![0; rows * k],
            lens: vec![0; rows],
            k,
            out: vec![0.0; rows * HEADS * RANK],
        }
    }

    /// Chooses keys for all rows; the time it takes.
    fn select(&mut self, cache: &Cache, scratch: &mut SelectScratch) -> f64 {
        let chosen = SelectionView::new(&mut self.positions, &mut self.lens, self.k);
        let shape = IndexShape { heads: INDEX_HEADS, scale: 0.1, hadamard: false };
        let q = TokenRows::new(&self.index_q, INDEX_HEADS * INDEX_DIM);
        let weights = TokenRows::new(&self.index_weights, INDEX_HEADS);
        let call =
            SelectCall::new(self.isa, &self.metadata, &self.rows, cache.keys, shape, q, weights, chosen)
                .unwrap();
        // SAFETY: one thread.
        timed(|| (0..call.num_items()).for_each(|item| unsafe { call.run_item(item, scratch) }))
    }

    /// Attends over the keys chosen; the time it takes.
    fn attend(&mut self, cache: &Cache, scratch: &mut LatentScratch) -> f64 {
        self.attend_as(cache, scratch, true)
    }

    /// The same, in which rows share tiles where they may, or do not.
    fn attend_as(&mut self, cache: &Cache, scratch: &mut LatentScratch, share: bool) -> f64 {
        let chosen = SelectionView::new(&mut self.positions, &mut self.lens, self.k);
        let (rank, width) = (RANK, HEADS * RANK);
        let shape = LatentShape { heads: HEADS, rank, rotated_stride: ROPE, rotated_offset: 0, scale: 0.05 };
        let call = LatentCall::new(
            self.isa,
            &self.metadata,
            &self.rows,
            cache.latents,
            chosen,
            shape,
            TokenRows::new(&self.absorbed, width),
            TokenRows::new(&self.rotated, HEADS * ROPE),
            &mut self.out,
            width,
        )
        .unwrap();
        let call = if share { call.share_tiles(1) } else { call };
        // SAFETY: one thread.
        timed(|| (0..call.num_items()).for_each(|item| unsafe { call.run_item(item, scratch) }))
    }
}

/// A decode row at the end of a context.
struct DecodeCase {
    context: usize,
    cache: Cache,
    sparse: Step,
    dense: Step,
    times: [Times; 3],
}

fn decode(isa: Isa) {
    println!("\nA decode row, microseconds, least / median of {DECODE_ROUNDS} rounds");
    println!(
        "{:>8} {:>15} {:>15} {:>17} {:>13} {:>13}",
        "context", "indexer", "attention", "dense, absorbed", "without index", "with index"
    );
    let (mut select, mut latent) = (SelectScratch::default(), LatentScratch::default());
    let case = |context: usize| {
        let cache = Cache::new(isa, context);
        let (sparse, dense) =
            (Step::new(isa, &cache, context, 1, TOPK), Step::new(isa, &cache, context, 1, context));
        DecodeCase { context, cache, sparse, dense, times: Default::default() }
    };
    let mut cases: Vec<DecodeCase> = [4, 8, 16, 32, 64, 128].map(|k| case(k * 1024)).into();
    cases.iter_mut().for_each(|case| _ = case.dense.select(&case.cache, &mut select));
    for round in 0..=DECODE_ROUNDS {
        for DecodeCase { cache, sparse, dense, times, .. } in &mut cases {
            let took = [
                sparse.select(cache, &mut select),
                sparse.attend(cache, &mut latent),
                dense.attend(cache, &mut latent),
            ];
            if round > 0 {
                times.iter_mut().zip(took).for_each(|(times, took)| times.0.push(took));
            }
        }
    }
    for DecodeCase { context, times: [indexer, attention, dense], .. } in &cases {
        let show = |times: &Times| format!("{:.0} / {:.0}", times.least(), times.median());
        let faster = |f: fn(&Times) -> f64, index: f64| f(dense) / (f(attention) + index * f(indexer));
        let ratio =
            |index| format!("{:.1} / {:.1}", faster(Times::least, index), faster(Times::median, index));
        let (i, a, d, without, with) = (show(indexer), show(attention), show(dense), ratio(0.0), ratio(1.0));
        println!("{context:>8} {i:>15} {a:>15} {d:>17} {without:>13} {with:>13}");
    }
    if let [first, .., last] = &cases[..] {
        let grows = |f: fn(&Times) -> f64, part: usize| f(&last.times[part]) / f(&first.times[part]);
        println!(
            "from {} to {} attention grows {:.2} / {:.2} times, the indexer {:.1} / {:.1} times",
            first.context,
            last.context,
            grows(Times::least, 1),
            grows(Times::median, 1),
            grows(Times::least, 0),
            grows(Times::median, 0)
        );
    }
}

/// Keys and values of all heads, and a chunk of queries over them.
struct Expanded {
    _memory: Vec<u64>,
    layer: KvLayer,
}

impl Expanded {
    fn new(isa: Isa, cache: &Cache) -> Expanded {
        let layout = KvLayout::new(KvDtype::Bf16, BLOCK as u32, HEADS, EXPANDED).unwrap();
        let blocks = cache.table.len();
        let mut memory = on_huge_pages(layout.block_bytes() * blocks);
        let at = memory.as_mut_ptr().cast();
        // SAFETY: the memory is returned beside the view.
        let layer = unsafe { KvLayer::new(at, layout.block_bytes(), blocks as u32, layout) };
        let some = values(BLOCK * HEADS * EXPANDED, 7);
        let some = TokenRows::new(&some, HEADS * EXPANDED);
        for block in 0..blocks {
            let slots: Vec<i64> = (0..BLOCK).map(|i| (block * BLOCK + i) as i64).collect();
            // SAFETY: one thread.
            unsafe { layer.write(isa, &slots, some, some) }.unwrap();
        }
        Expanded { _memory: memory, layer }
    }

    fn attend(&self, step: &Step, scratch: &mut AttentionScratch) -> f64 {
        let width = HEADS * EXPANDED;
        let q = values(CHUNK * width, 5);
        let mut out = vec![0.0; CHUNK * width];
        let mut work = WorkList::new();
        work.plan(&step.metadata, HEADS, &self.layer).unwrap();
        let q = TokenRows::new(&q, width);
        let call = AttentionCall::new(step.isa, &step.metadata, &work, self.layer, 0.05, q, &mut out, width)
            .unwrap();
        // SAFETY: one thread.
        timed(|| unsafe { call.run_all(scratch) })
    }
}

/// Multiply-adds of a row for each key: of the indexer, of absorbed and of expanded attention.
const COSTS: [usize; 3] = [INDEX_HEADS * INDEX_DIM, HEADS * (2 * RANK + ROPE), 2 * HEADS * EXPANDED];

fn prefill(isa: Isa) {
    println!("\nA prefill, seconds, least / median of {ROUNDS} rounds; in brackets 10^12 multiply-adds");
    println!(
        "{:>8} {:>22} {:>23} {:>21} {:>13} {:>13}",
        "length", "sparse with index", "dense, absorbed", "dense, expanded", "to absorbed", "to expanded"
    );
    for length in [32, 64].map(|k| k * 1024usize) {
        let cache = Cache::new(isa, length);
        let expanded = Expanded::new(isa, &cache);
        let (mut select, mut latent) = (SelectScratch::default(), LatentScratch::default());
        let mut dense = AttentionScratch::new();
        let mut contexts: Vec<usize> = (0..=8).map(|i| (i * length / 8).max(CHUNK)).collect();
        contexts.insert(1, TOPK);
        // Rows of dense, absorbed attention are all alike, so that a few do.
        let few = 4;
        let mut steps: Vec<[Step; 2]> = contexts
            .iter()
            .map(|&context| {
                let mut all = Step::new(isa, &cache, context, few, context);
                all.select(&cache, &mut select);
                [Step::new(isa, &cache, context, CHUNK, TOPK), all]
            })
            .collect();
        let mut times: [Times; 3] = Default::default();
        for round in 0..=ROUNDS {
            // Of each context the time of a row, in seconds.
            let rows: Vec<[f64; 3]> = steps
                .iter_mut()
                .map(|[sparse, all]| {
                    let took = sparse.select(&cache, &mut select) + sparse.attend(&cache, &mut latent);
                    let expanded = expanded.attend(sparse, &mut dense) / CHUNK as f64;
                    [took / CHUNK as f64, all.attend(&cache, &mut latent) / few as f64, expanded]
                })
                .map(|row| row.map(|micros| micros / 1e6))
                .collect();
            if round > 0 {
                for (i, times) in times.iter_mut().enumerate() {
                    let pieces = rows.windows(2).zip(contexts.windows(2)).map(|(rows, contexts)| {
                        (rows[0][i] + rows[1][i]) / 2.0 * (contexts[1] - contexts[0]) as f64
                    });
                    times.0.push(pieces.sum());
                }
            }
        }
        let pairs = |most: usize| (1..=length).map(|seen| seen.min(most)).sum::<usize>() as f64;
        let (all, chosen) = (pairs(length), pairs(TOPK));
        let scored = all - pairs(TOPK).min((1..=TOPK).sum::<usize>() as f64);
        let [index, absorbed, wide] = COSTS.map(|cost| cost as f64 / 1e12);
        let counts = [scored * index + chosen * absorbed, all * absorbed, all * wide];
        let show =
            |i: usize| format!("{:.1} / {:.1} ({:.2})", times[i].least(), times[i].median(), counts[i]);
        let ratio = |i: usize| {
            let of = |f: fn(&Times) -> f64| f(&times[i]) / f(&times[0]);
            format!("{:.2} / {:.2}", of(Times::least), of(Times::median))
        };
        println!(
            "{length:>8} {:>22} {:>23} {:>21} {:>13} {:>13}",
            show(0),
            show(1),
            show(2),
            ratio(1),
            ratio(2)
        );
    }
}

/// A prefill of no more keys than are chosen: nothing is scored, and rows share the tiles of their keys.
fn short(isa: Isa) {
    println!(
        "\nA prefill of {TOPK} tokens, of which every key is taken, milliseconds, least / median of {ROUNDS} rounds"
    );
    let cache = Cache::new(isa, TOPK);
    let expanded = Expanded::new(isa, &cache);
    let (mut select, mut latent) = (SelectScratch::default(), LatentScratch::default());
    let mut dense = AttentionScratch::new();
    let mut steps: Vec<Step> =
        (1..=TOPK / CHUNK).map(|i| Step::new(isa, &cache, i * CHUNK, CHUNK, TOPK)).collect();
    let mut times: [Times; 4] = Default::default();
    for round in 0..=ROUNDS {
        let mut took = [0.0; 4];
        for step in &mut steps {
            took[0] += step.select(&cache, &mut select);
            // Who is second finds the latents at hand.
            for share in if round % 2 == 0 { [true, false] } else { [false, true] } {
                took[if share { 1 } else { 2 }] += step.attend_as(&cache, &mut latent, share);
            }
            took[3] += expanded.attend(step, &mut dense);
        }
        if round > 0 {
            times.iter_mut().zip(took).for_each(|(times, took)| times.0.push(took / 1e3));
        }
    }
    for (name, times) in ["choice", "tiles shared", "row by row", "dense, expanded"].iter().zip(&times) {
        println!("{name:<16}{:>9.1} / {:.1}", times.least(), times.median());
    }
    println!(
        "row by row to shared {:.3} / {:.3}",
        times[2].least() / times[1].least(),
        times[2].median() / times[1].median()
    );
}

fn choice(isa: Isa) {
    println!("\nThe best {TOPK} of 65,536 scores, microseconds, least / median of 40 rounds");
    let mut times: [Times; 2] = Default::default();
    let (mut candidates, mut work) = (Candidates::new(), Vec::new());
    for round in 0..=40 {
        let scores = values(65_536, round);
        let mut choose = || {
            timed(|| {
                candidates.begin(TOPK);
                let tiles = scores.chunks(64).zip((0..).step_by(64));
                tiles.for_each(|(tile, at)| candidates.push(isa, at, tile));
                assert_eq!(std::hint::black_box(candidates.finish()).len(), TOPK);
            })
        };
        let mut select = || {
            timed(|| {
                work.clear();
                work.extend(scores.iter().zip(0u32..).map(|(&score, at)| (score, at)));
                work.select_nth_unstable_by(TOPK, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                work[..TOPK].sort_unstable_by_key(|&(_, at)| at);
                std::hint::black_box(&work);
            })
        };
        // Whoever is first finds the scores farther away.
        let (choice, quick) = if round % 2 == 0 {
            let choice = choose();
            (choice, select())
        } else {
            let quick = select();
            (choose(), quick)
        };
        assert!(candidates.finish().eq(work[..TOPK].iter().map(|&(_, at)| at)));
        if round > 0 {
            times[0].0.push(choice);
            times[1].0.push(quick);
        }
    }
    let [choice, quick] = &times;
    println!("choice {:.0} / {:.0}", choice.least(), choice.median());
    println!("quickselect {:.0} / {:.0}", quick.least(), quick.median());
    println!("faster {:.1} / {:.1} times", quick.least() / choice.least(), quick.median() / choice.median());
}

fn memory(isa: Isa) {
    let before = BYTES.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let cache = Cache::new(isa, 32 * 1024);
    let kv = BYTES.load(Ordering::Relaxed) - before;
    let mut step = Step::new(isa, &cache, 32 * 1024, STEP, TOPK);
    let buffers = BYTES.load(Ordering::Relaxed) - before - kv;
    let mut scratch = SelectScratch::default();
    step.select(&cache, &mut scratch);
    step.attend(&cache, &mut LatentScratch::default());
    let peak = PEAK.load(Ordering::Relaxed) - before;
    let mb = |bytes: usize| bytes as f64 / 1e6;
    println!(
        "\nThe last step of {STEP} rows of a prefill of 32,768: {:.0} MB of KV in one layer, {:.0} MB of queries, outputs and \
         choices, {:.1} MB of working memory; {:.0} MB at most",
        mb(kv),
        mb(buffers),
        mb(peak - kv - buffers),
        mb(peak)
    );
}

fn main() {
    let isa = Isa::detect();
    println!("{isa}, one thread");
    let part = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    type Part = (&'static str, fn(Isa));
    let runs: [Part; 5] =
        [("choice", choice), ("decode", decode), ("prefill", prefill), ("short", short), ("memory", memory)];
    for (name, run) in runs {
        if part.as_ref().is_none_or(|part| part == name) {
            run(isa);
        }
    }
}
