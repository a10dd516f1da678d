//! Sliding windows: the kernels against the reference bit for bit, over caches that hold nothing but NaN
//! outside the window, and whose tables have lost the blocks behind it.

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{
    AttentionError, AttentionMetadata, KvDtype, MaskKind, MetadataBuilder, MetadataRow, WorkList,
};
use pagedraft_block_manager::BlockId;
use std::ops::Range;

use crate::world::*;

/// One sequence, some queries of it, and the window that they are computed with.
#[derive(Clone, Copy)]
struct Windowed<'a> {
    sequence: &'a Sequence,
    context: usize,
    query: usize,
    mask: MaskKind,
    window: usize,
}

impl Windowed<'_> {
    /// The keys that query `i` of the sequence sees: those of `i - window < j`, and up to itself if causal.
    fn seen(&self, i: usize) -> Range<usize> {
        let end = match self.mask {
            MaskKind::Causal => i + 1,
            MaskKind::Bidirectional => self.context + self.query,
        };
        (i + 1).saturating_sub(self.window)..end
    }

    /// A table for the row in which all blocks behind the window of its first query are gone, with only the
    /// keys stored that some query sees.
    fn stored(&self, isa: Isa, cache: &mut Cache) -> Vec<BlockId> {
        let end = self.context + self.query;
        let first = self.seen(self.context).start;
        let mut table = cache.table(end);
        cache.store(isa, self.sequence, first, end, &table);
        table[..first / cache.block_size() as usize].fill(BlockId::FREED);
        table
    }
}

fn metadata(rows: &[(Windowed<'_>, Vec<BlockId>)], block_size: u32) -> AttentionMetadata {
    let mut builder = MetadataBuilder::new(block_size).unwrap();
    for (row, table) in rows {
        builder.push_row(row.context as u32, row.query as u32, table, row.mask).unwrap();
        builder.set_window(Some(row.window as u32));
    }
    builder.finish().check(block_size).unwrap();
    builder.finish().clone()
}

fn queries(rows: &[(Windowed<'_>, Vec<BlockId>)], heads: Heads) -> Vec<f32> {
    let width = heads.q_width();
    let of_row = |row: &Windowed<'_>| row.context * width..(row.context + row.query) * width;
    rows.iter().flat_map(|(row, _)| row.sequence.q[of_row(row)].to_vec()).collect()
}

fn random_heads(rng: &mut Rng) -> Heads {
    Heads {
        kv: rng.between(1, 2),
        group: rng.pick(&[1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16]),
        dim: rng.pick(&[2, 8, 16, 20, 32, 64, 80, 96, 128]),
    }
}

fn random_window(rng: &mut Rng) -> usize {
    match rng.below(2) {
        0 => rng.pick(&[1, 2, 5, 15, 16, 17, 31, 48, 63, 64, 65, 128, 1000]),
        _ => rng.between(1, 250),
    }
}

const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16];

#[test]
fn kernels_give_the_bits_of_the_reference_with_any_window() {
    for seed in 0..60 {
        let mut rng = Rng(seed);
        let heads = random_heads(&mut rng);
        let (dtype, block_size) = (DTYPES[seed as usize % 3], rng.pick(&[16, 32, 64]));
        let window = random_window(&mut rng);
        let mut shapes: Vec<_> = (0..rng.between(1, 3))
            .map(|_| {
                let query = if rng.below(2) == 0 { 1 } else { rng.between(2, 150) };
                let mask = rng.pick(&[MaskKind::Causal, MaskKind::Causal, MaskKind::Bidirectional]);
                (rng.below(400), query, mask)
            })
            .collect();
        shapes.sort_by_key(|shape| shape.1 == 1);
        let sequences: Vec<_> = shapes.iter().map(|s| Sequence::random(s.0 + s.1, heads, &mut rng)).collect();
        for isa in sets() {
            let what =
                format!("seed {seed} {isa} {heads:?} {dtype:?} {block_size} window {window} {shapes:?}");
            println!("{what}");
            let mut cache = Cache::roomy(dtype, block_size, heads, 2000, &mut rng);
            let rows: Vec<_> = sequences
                .iter()
                .zip(&shapes)
                .map(|(sequence, &(context, query, mask))| {
                    let row = Windowed { sequence, context, query, mask, window };
                    (row, row.stored(isa, &mut cache))
                })
                .collect();
            let step = metadata(&rows, block_size);
            let fast = run(isa, &cache, &step, &queries(&rows, heads), heads, 2);
            let mut slow = Vec::new();
            for (row, table) in &rows {
                for i in row.context..row.context + row.query {
                    slow.extend(query_slowly(isa, &cache, table, row.sequence, i, row.seen(i), heads));
                }
            }
            assert_same_bits(&fast, &slow, &what);
        }
    }
}

#[test]
fn a_windowed_query_has_the_same_bits_alone_in_a_chunk_and_in_a_batch() {
    for seed in 200..225 {
        let mut rng = Rng(seed);
        let heads = random_heads(&mut rng);
        let (dtype, window) = (DTYPES[seed as usize % 3], random_window(&mut rng));
        let sequence = Sequence::random(rng.between(100, 500), heads, &mut rng);
        let mate = Sequence::random(200, heads, &mut rng);
        let width = heads.q_width();
        println!("seed {seed} {heads:?} {dtype:?} {} tokens, window {window}", sequence.len);
        let of =
            |sequence, context, query| Windowed { sequence, context, query, mask: MaskKind::Causal, window };
        for isa in sets() {
            let mut whole: Option<Vec<f32>> = None;
            for (block_size, chunk) in [(16, usize::MAX), (16, 1), (32, 7), (64, 16), (16, 64), (64, 100)] {
                let mut chunked = Vec::new();
                for context in (0..sequence.len).step_by(chunk) {
                    let mut cache = Cache::roomy(dtype, block_size, heads, 1000, &mut rng);
                    let row = of(&sequence, context, chunk.min(sequence.len - context));
                    // A mate before it and one behind it, half of the time.
                    let alone = rng.below(2) == 0;
                    let mut rows = vec![row];
                    if !alone {
                        rows.insert(0, of(&mate, 30, 90));
                        rows.push(of(&mate, 199, 1));
                    }
                    let rows: Vec<_> =
                        rows.into_iter().map(|row| (row, row.stored(isa, &mut cache))).collect();
                    let step = metadata(&rows, block_size);
                    let threads = rng.between(1, 3);
                    let out = run(isa, &cache, &step, &queries(&rows, heads), heads, threads);
                    let before = if alone { 0 } else { 90 * width };
                    chunked.extend_from_slice(&out[before..before + row.query * width]);
                }
                let whole = whole.get_or_insert_with(|| chunked.clone());
                let what = format!("seed {seed} {isa} chunks of {chunk}, blocks of {block_size}");
                assert_same_bits(&chunked, whole, &what);
            }
        }
    }
}

#[test]
fn a_window_as_long_as_the_sequence_gives_the_bits_of_none_and_one_token_less_does_not() {
    for seed in 300..310 {
        let mut rng = Rng(seed);
        let heads = random_heads(&mut rng);
        let sequence = Sequence::random(rng.between(65, 300), heads, &mut rng);
        for isa in sets() {
            let mut cache = Cache::roomy(KvDtype::F32, 16, heads, 700, &mut rng);
            let table = cache.table(sequence.len);
            cache.store(isa, &sequence, 0, sequence.len, &table);
            let mask = MaskKind::Causal;
            let row = Row { sequence: &sequence, table: &table, context: 1, query: sequence.len - 1, mask };
            let (mut step, q) = step(&[row], heads, 16);
            let mut of_window = |window| {
                step.window = window;
                run(isa, &cache, &step, &q, heads, 1)
            };
            let without = of_window(None);
            let len = sequence.len as u32;
            for window in [len, len + 1, u32::MAX] {
                assert_same_bits(&of_window(Some(window)), &without, &format!("seed {seed} {isa} {window}"));
            }
            let shorter = of_window(Some(len - 1));
            let last = without.len() - heads.q_width();
            assert_same_bits(&shorter[..last], &without[..last], "only the last query sees one key less");
            assert_ne!(shorter[last..], without[last..]);
        }
    }
}

#[test]
fn windowed_outputs_are_softmax_over_the_window_within_single_precision() {
    let mut rng = Rng(400);
    let heads = Heads { kv: 1, group: 2, dim: 32 };
    for window in [1, 40, 64, 100] {
        let sequence = Sequence::random(260, heads, &mut rng);
        let row = Windowed { sequence: &sequence, context: 0, query: 260, mask: MaskKind::Causal, window };
        let mut cache = Cache::roomy(KvDtype::F32, 16, heads, 600, &mut rng);
        let rows = [(row, row.stored(Isa::detect(), &mut cache))];
        let step = metadata(&rows, 16);
        let out = run(Isa::detect(), &cache, &step, &queries(&rows, heads), heads, 1);
        for (at, out) in out.iter().enumerate() {
            let (i, head, d) = (at / 64, at / 32 % 2, at % 32);
            let q = &sequence.q[i * 64 + head * 32..][..32];
            let dot = |j: usize| -> f64 {
                let k = &sequence.k[j * 32..][..32];
                q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                    * f64::from(heads.scale())
            };
            let seen = i.saturating_sub(window - 1)..i + 1;
            let greatest = seen.clone().map(dot).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<_> = seen.clone().map(|j| (dot(j) - greatest).exp()).collect();
            let sum =
                weights.iter().zip(seen).map(|(w, j)| w * f64::from(sequence.v[j * 32 + d])).sum::<f64>();
            let exact = sum / weights.iter().sum::<f64>();
            assert!((f64::from(*out) - exact).abs() < 2e-5, "window {window} query {i}: {out}, not {exact}");
        }
    }
}

#[test]
fn blocks_that_went_too_early_and_windows_that_cannot_be_are_refused_by_name() {
    let mut rng = Rng(500);
    let heads = Heads { kv: 1, group: 1, dim: 16 };
    let cache = Cache::roomy(KvDtype::F32, 16, heads, 200, &mut rng);
    let table = [BlockId::FREED, BlockId::FREED, BlockId(1), BlockId(2)];
    let plan = |window, rows: &[MetadataRow<'_>]| {
        let mut builder = MetadataBuilder::new(16).unwrap();
        rows.iter().try_for_each(|row| builder.push(*row))?;
        builder.set_window(window);
        let checked = builder.finish().check(16);
        let planned = WorkList::new().plan(builder.finish(), 1, &cache.layer);
        checked.and(planned)
    };
    // The query at 50 sees the keys from 51 - window on; those of the freed blocks end at 31.
    let row = MetadataRow::causal(50, 9, &table);
    plan(Some(19), &[row]).unwrap();
    let gone = AttentionError::FreedBlock { row: 0, entry: 1 };
    assert_eq!(plan(Some(20), &[row]), Err(gone.clone()));
    assert_eq!(plan(Some(35), &[row]), Err(gone));
    assert_eq!(plan(Some(36), &[row]), Err(AttentionError::FreedBlock { row: 0, entry: 0 }));
    assert_eq!(plan(None, &[row]), Err(AttentionError::FreedBlock { row: 0, entry: 0 }));
    assert_eq!(plan(Some(0), &[row]), Err(AttentionError::EmptyWindow));
    // A token would be stored where there is no block; not if it is stored already.
    let early = MetadataRow::causal(31, 9, &table);
    assert_eq!(plan(Some(1), &[early]), Err(AttentionError::FreedBlock { row: 0, entry: 1 }));
    let again = MetadataRow { stored: 32, ..early };
    assert_eq!(plan(Some(1), &[again]), Err(AttentionError::FreedBlock { row: 0, entry: 1 }));
    plan(Some(1), &[MetadataRow { stored: 40, ..MetadataRow::causal(32, 8, &table) }]).unwrap();
    // No query has an index between those of its neighbours, so that a window can't be measured.
    let full = [BlockId(0); 4];
    let index = [10, 30, 50];
    let canvas = MetadataRow {
        behind: 47,
        mask: MaskKind::Bidirectional,
        index: Some(&index),
        ..MetadataRow::causal(10, 3, &full)
    };
    plan(Some(60), &[canvas]).unwrap();
    let refused = AttentionError::WindowedIndex { row: 0, seq_len: 60, window: 59 };
    assert_eq!(plan(Some(59), &[canvas]), Err(refused));
}
