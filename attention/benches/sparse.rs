//! Sparse attention of one decode row on one thread: 16 heads over latents of 512 + 64 values, an indexer of 16 heads of
//! 128 values, 2,048 keys chosen, bf16, random values. A plain program:
//! `cargo bench -p pagedraft-attention --bench sparse`.
//!
//! Cases are interleaved, round after round. Printed for each context: the median time of the indexer (scores and choice),
//! of attention over the keys chosen, and of attention over all keys; and how long the choice alone takes beside a
//! quickselect of the same scores.
#![allow(clippy::unwrap_used, reason = "a fault here is a failed bench")]

use std::time::Instant;

use pagedraft_attention::isa::Isa;
use pagedraft_attention::sparse::{
    Candidates, IndexShape, LatentCall, LatentScratch, LatentShape, SelectCall, SelectScratch, SelectionView,
    SparseRows, VectorLayer, VectorLayout,
};
use pagedraft_attention::{KvDtype, MaskKind, MetadataBuilder, TokenRows};
use pagedraft_block_manager::BlockId;

const HEADS: usize = 16;
const RANK: usize = 512;
const ROPE: usize = 64;
const INDEX_HEADS: usize = 16;
const INDEX_DIM: usize = 128;
const TOPK: usize = 2048;
const ROUNDS: usize = 7;

fn values(n: usize, mut state: u64) -> Vec<f32> {
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A cache of random vectors.
fn cache(isa: Isa, width: usize, tokens: usize) -> (Vec<u64>, VectorLayer) {
    let layout = VectorLayout::new(KvDtype::Bf16, 16, width).unwrap();
    let blocks = tokens / 16;
    let mut memory = vec![0u64; layout.block_bytes() * blocks / 8];
    // SAFETY: the memory is returned beside the view.
    let layer =
        unsafe { VectorLayer::new(memory.as_mut_ptr().cast(), layout.block_bytes(), blocks as u32, layout) };
    let some = values(256 * width, 7);
    for first in (0..tokens).step_by(256) {
        let slots: Vec<i64> = (first as i64..first as i64 + 256).collect();
        // SAFETY: one thread.
        unsafe { layer.write(isa, &slots, TokenRows::new(&some, width)) }.unwrap();
    }
    (memory, layer)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn timed(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64() * 1e6
}

fn main() {
    let isa = Isa::detect();
    println!("{isa}, one thread, {ROUNDS} rounds, medians in microseconds");
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "context", "indexer", "sparse", "dense", "choice", "quickselect"
    );
    for context in [4, 8, 16, 32, 64, 128].map(|k| k * 1024usize) {
        let (_keys_memory, keys) = cache(isa, INDEX_DIM, context);
        let (_latents_memory, latents) = cache(isa, RANK + ROPE, context);
        let table: Vec<BlockId> = (0..context as u32 / 16).map(BlockId).collect();
        let mut builder = MetadataBuilder::new(16).unwrap();
        builder.begin();
        builder.push_row(context as u32 - 1, 1, &table, MaskKind::Causal).unwrap();
        let metadata = builder.finish();
        let mut rows = SparseRows::new();
        rows.plan(metadata, 16, table.len() as u32).unwrap();
        let (q, weights) = (values(INDEX_HEADS * INDEX_DIM, 1), values(INDEX_HEADS, 2));
        let (absorbed, rotated) = (values(HEADS * RANK, 3), values(HEADS * ROPE, 4));
        let scores = values(context, 5);
        let mut times: [Vec<f64>; 5] = Default::default();
        let (mut select, mut latent) = (SelectScratch::default(), LatentScratch::default());
        let (mut candidates, mut work) = (Candidates::new(), Vec::new());
        for round in 0..=ROUNDS {
            let mut took = [0.0; 5];
            for (place, k) in [(0, TOPK), (2, context)] {
                let (mut positions, mut lens) = (vec![0; k], [0]);
                let chosen = SelectionView::new(&mut positions, &mut lens, k);
                let shape = IndexShape { heads: INDEX_HEADS, scale: 0.1 };
                let (q, weights) = (TokenRows::new(&q, q.len()), TokenRows::new(&weights, INDEX_HEADS));
                let call = SelectCall::new(isa, metadata, &rows, keys, shape, q, weights, chosen).unwrap();
                // SAFETY: one thread.
                let choosing = timed(|| unsafe { call.run_item(0, &mut select) });
                if place == 0 {
                    took[0] = choosing;
                }
                let (rank, scale) = (RANK, 0.05);
                let shape =
                    LatentShape { heads: HEADS, rank, rotated_stride: ROPE, rotated_offset: 0, scale };
                let mut out = vec![0.0; HEADS * RANK];
                let (absorbed, rotated) =
                    (TokenRows::new(&absorbed, HEADS * RANK), TokenRows::new(&rotated, HEADS * ROPE));
                let call = LatentCall::new(
                    isa,
                    metadata,
                    &rows,
                    latents,
                    chosen,
                    shape,
                    absorbed,
                    rotated,
                    &mut out,
                    HEADS * RANK,
                );
                let call = call.unwrap();
                // SAFETY: one thread.
                took[1 + place / 2] = timed(|| unsafe { call.run_item(0, &mut latent) });
            }
            took[3] = timed(|| {
                candidates.begin(TOPK);
                for (tile, scores) in scores.chunks(64).enumerate() {
                    candidates.push(tile as u32 * 64, scores);
                }
                assert_eq!(std::hint::black_box(candidates.finish()).len(), TOPK);
            });
            took[4] = timed(|| {
                work.clear();
                work.extend(scores.iter().zip(0u32..).map(|(&score, at)| (score, at)));
                let best = TOPK.min(work.len() - 1);
                work.select_nth_unstable_by(best, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                work[..best].sort_unstable_by_key(|&(_, at)| at);
                std::hint::black_box(&work);
            });
            // The first round warms up.
            if round > 0 {
                times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
            }
        }
        let [indexer, sparse, dense, choice, quick] = times.map(median);
        println!("{context:>8} {indexer:>10.0} {sparse:>10.0} {dense:>10.0} {choice:>10.0} {quick:>12.0}");
    }
}
