//! What is stored, what is copied, and that nothing foreign or stale is ever seen.

use half::{bf16, f16};
use pagedraft_attention::isa::Isa;
use pagedraft_attention::{
    AttentionCall, AttentionError, AttentionScratch, KvDtype, KvLayout, MaskKind, MetadataBuilder, TokenRows,
    WorkList,
};
use pagedraft_block_manager::BlockId;

use crate::world::*;

const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16];

fn rounded(dtype: KvDtype, x: f32) -> f32 {
    match dtype {
        KvDtype::F32 => x,
        KvDtype::F16 => f16::from_f32(x).to_f32(),
        KvDtype::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

#[test]
fn every_element_of_a_layout_has_a_place_of_its_own() {
    for block_size in [16, 32, 64] {
        for dim in [2, 8, 16, 20, 64, 80] {
            let layout = KvLayout::new(KvDtype::Bf16, block_size, 3, dim).unwrap();
            let mut seen = vec![false; layout.block_bytes() / 2];
            let mut mark = |element: usize| assert!(!std::mem::replace(&mut seen[element], true));
            for head in 0..3 {
                for token in 0..block_size as usize {
                    (0..dim).for_each(|d| mark(layout.k_element(head, token, d)));
                    (0..layout.v_stride()).for_each(|d| mark(layout.v_row(head, token) + d));
                }
            }
            assert!(seen.iter().all(|&s| s), "every element of a block is used");
            assert_eq!(layout.token_bytes() * block_size as usize, layout.block_bytes());
        }
    }
}

#[test]
fn stored_values_are_the_given_ones_rounded_to_nearest_even() {
    for seed in 0..20 {
        let mut rng = Rng(seed);
        let heads = Heads { kv: rng.between(1, 3), group: 1, dim: rng.pick(&[2, 8, 16, 20, 64]) };
        let (dtype, block_size) = (rng.pick(&DTYPES), rng.pick(&[16, 32, 64]));
        println!("seed {seed}: {heads:?} {dtype:?} blocks of {block_size}");
        let sequence = Sequence::random(rng.between(1, 150), heads, &mut rng);
        for isa in sets() {
            let mut cache = Cache::roomy(dtype, block_size, heads, sequence.len, &mut rng);
            let table = cache.table(sequence.len);
            cache.store(isa, &sequence, 0, sequence.len, &table);
            let copies = cache.table(sequence.len);
            for (&from, &to) in table.iter().zip(&copies) {
                unsafe { cache.layer.copy_block(from, to) }.unwrap();
            }
            for i in 0..sequence.len {
                for (head, d) in (0..heads.kv).flat_map(|h| (0..heads.dim).map(move |d| (h, d))) {
                    let at = i * heads.kv_width() + head * heads.dim + d;
                    for table in [&table, &copies] {
                        let slot = cache.slot(table, i) as u64;
                        let (k, v) =
                            unsafe { (cache.layer.key(slot, head, d), cache.layer.value(slot, head, d)) };
                        assert_eq!(k.to_bits(), rounded(dtype, sequence.k[at]).to_bits());
                        assert_eq!(v.to_bits(), rounded(dtype, sequence.v[at]).to_bits());
                    }
                }
                let width = heads.kv_width();
                let (mut keys, mut values) = (vec![0.0; width], vec![0.0; width]);
                unsafe { cache.layer.read(cache.slot(&table, i) as u64, &mut keys, &mut values) };
                let is = |found: &[f32], given: &[f32]| {
                    let given = &given[i * width..(i + 1) * width];
                    found.iter().zip(given).all(|(f, &g)| f.to_bits() == rounded(dtype, g).to_bits())
                };
                assert!(is(&keys, &sequence.k) && is(&values, &sequence.v), "the row of token {i}");
            }
        }
    }
}

#[test]
fn a_token_without_a_slot_is_stored_nowhere_and_a_slot_that_is_not_there_is_an_error() {
    let mut rng = Rng(5);
    let heads = Heads { kv: 1, group: 1, dim: 16 };
    let layout = KvLayout::new(KvDtype::F32, 16, 1, 16).unwrap();
    let cache = Cache::new(layout, 2, &mut rng);
    let sequence = Sequence::random(3, heads, &mut rng);
    let (k, v) = (TokenRows::new(&sequence.k, 16), TokenRows::new(&sequence.v, 16));
    let write = |slots: &[i64]| unsafe { cache.layer.write(Isa::Portable, slots, k, v) };
    write(&[-1, 20, -1]).unwrap();
    let stored = |slot| !unsafe { cache.layer.key(slot, 0, 0) }.is_nan();
    assert_eq!((0..32).filter(|&s| stored(s)).collect::<Vec<_>>(), [20]);
    for wrong in [-2, 32, i64::MAX, i64::MIN] {
        let error = AttentionError::NoSuchSlot { token: 1, slot: wrong, num_slots: 32 };
        assert_eq!(write(&[0, wrong, 1]), Err(error));
        assert!(!stored(0), "nothing is stored beside an error");
    }
    assert!(matches!(write(&[0, 1, 2, 3]), Err(AttentionError::SmallBuffer { buffer: "k", .. })));
    let copy = unsafe { cache.layer.copy_block(BlockId(0), BlockId(2)) };
    assert_eq!(copy, Err(AttentionError::NoSuchBlock { row: 0, block: 2, num_blocks: 2 }));
}

#[test]
fn nan_in_foreign_blocks_stale_slots_and_later_keys_never_leaks() {
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let heads = Heads {
            kv: rng.between(1, 2),
            group: rng.pick(&[1, 2, 5, 7, 8]),
            dim: rng.pick(&[8, 16, 64, 80]),
        };
        let (dtype, block_size) = (rng.pick(&DTYPES), rng.pick(&[16, 32, 64]));
        let len = rng.between(2, 200);
        println!("seed {seed}: {heads:?} {dtype:?} blocks of {block_size}, {len} tokens");
        let clean = Sequence::random(len, heads, &mut rng);
        let bad_from = rng.between(1, len - 1);
        for isa in sets() {
            // A fresh cache is full of NaN, and so are the keys and values of the later tokens.
            let mut cache = Cache::roomy(dtype, block_size, heads, len, &mut rng);
            let table = cache.table(len);
            cache.store(isa, &clean, 0, bad_from, &table);
            let row =
                |query| Row { sequence: &clean, table: &table, context: 0, query, mask: MaskKind::Causal };
            let out = attend(isa, &cache, &[row(len)], heads, 1);
            let expected = attend(isa, &cache, &[row(bad_from)], heads, 1);
            assert!(expected.iter().all(|x| x.is_finite()), "seed {seed} {isa}");
            assert_same_bits(&out[..expected.len()], &expected, &format!("seed {seed} {isa}"));
            assert!(out[expected.len()..].iter().all(|x| x.is_nan()), "a NaN that is seen shows");
        }
    }
}

#[test]
fn pad_rows_are_neither_read_nor_written() {
    let mut rng = Rng(9);
    let heads = Heads { kv: 2, group: 2, dim: 16 };
    let mut cache = Cache::roomy(KvDtype::F32, 16, heads, 100, &mut rng);
    let sequence = Sequence::random(20, heads, &mut rng);
    let table = cache.table(20);
    cache.store(Isa::Portable, &sequence, 0, 20, &table);
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push_pad_row(2).unwrap();
    builder.push_row(19, 1, &table, MaskKind::Causal).unwrap();
    builder.push_pad_row(1).unwrap();
    let metadata = builder.finish();
    let mut work = WorkList::new();
    work.plan(metadata, 4, &cache.layer).unwrap();
    assert_eq!(work.len(), 2, "one item for each key head of the one real row");
    let width = heads.q_width();
    let mut out = vec![7.0; 4 * width];
    let q = TokenRows::new(&sequence.q, width);
    let isa = Isa::detect();
    let call = AttentionCall::new(isa, metadata, &work, cache.layer, 1.0, q, &mut out, width).unwrap();
    unsafe { call.run_all(&mut AttentionScratch::new()) };
    assert!(out[..2 * width].iter().chain(&out[3 * width..]).all(|&x| x == 7.0));
    assert!(out[2 * width..3 * width].iter().all(|&x| x != 7.0));
}

#[test]
fn a_plan_refuses_what_the_kernels_could_not_trust() {
    let mut rng = Rng(1);
    let heads = Heads { kv: 2, group: 2, dim: 16 };
    let cache = Cache::new(KvLayout::new(KvDtype::F32, 16, 2, 16).unwrap(), 4, &mut rng);
    let mut builder = MetadataBuilder::new(16).unwrap();
    builder.push_row(16, 4, &[BlockId(1), BlockId(3)], MaskKind::Causal).unwrap();
    let good = builder.finish().clone();
    let mut work = WorkList::new();
    let mut plan = |change: &dyn Fn(&mut pagedraft_attention::AttentionMetadata)| {
        let mut metadata = good.clone();
        change(&mut metadata);
        let result = work.plan(&metadata, 4, &cache.layer);
        assert_eq!(result.is_err(), work.is_empty());
        result
    };
    plan(&|_| {}).unwrap();
    let mut foreign = pagedraft_attention::BlockTables::new();
    foreign.push(&[BlockId(1), BlockId(4)]);
    let error = plan(&|m| m.block_tables = foreign.clone());
    assert_eq!(error, Err(AttentionError::NoSuchBlock { row: 0, block: 4, num_blocks: 4 }));
    let error = plan(&|m| (m.seq_lens[0], m.context_lens[0]) = (40, 36));
    assert_eq!(error, Err(AttentionError::ShortTable { row: 0, blocks: 2, needed: 3 }));
    assert!(plan(&|m| m.seq_lens[0] = 21).is_err());
    assert!(plan(&|m| m.query_start_loc[0] = 5).is_err());
    assert!(
        plan(&|m| {
            m.query_start_loc.pop();
        })
        .is_err()
    );
    assert!(plan(&|m| m.context_lens.clear()).is_err());

    assert!(matches!(work.plan(&good, 5, &cache.layer), Err(AttentionError::Shape { .. })));
    work.plan(&good, 4, &cache.layer).unwrap();
    let (q, width) = (vec![0.0; 4 * heads.q_width()], heads.q_width());
    let mut out = q.clone();
    let other = Cache::new(*cache.layer.layout(), 5, &mut rng);
    let rows = TokenRows::new(&q, width);
    let isa = Isa::Portable;
    let call = AttentionCall::new(isa, &good, &work, other.layer, 1.0, rows, &mut out, width);
    assert!(matches!(call.map(drop), Err(AttentionError::ForeignPlan { .. })));
    let short = TokenRows::new(&q[1..], width);
    let call = AttentionCall::new(isa, &good, &work, cache.layer, 1.0, short, &mut out, width);
    assert!(matches!(call.map(drop), Err(AttentionError::SmallBuffer { buffer: "q", .. })));
    let call = AttentionCall::new(isa, &good, &work, cache.layer, 1.0, rows, &mut out[1..], width);
    assert!(matches!(call.map(drop), Err(AttentionError::SmallBuffer { buffer: "out", .. })));
}
