//! Once its buffers have grown, a steady step allocates nothing: metadata, work list, store, attention.
#![allow(clippy::unwrap_used, clippy::undocumented_unsafe_blocks)] // a fault here is a failed test

#[path = "../../block_manager/tests/counting/mod.rs"]
mod counting;
mod random;
mod world;

use counting::ALLOCATIONS;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::{
    AttentionCall, AttentionScratch, KvDtype, MaskKind, MetadataBuilder, TokenRows, WorkList,
};
use world::*;

#[test]
fn a_steady_step_makes_no_heap_allocation() {
    let mut rng = Rng(3);
    let heads = Heads { kv: 2, group: 4, dim: 32 };
    let mut cache = Cache::roomy(KvDtype::Bf16, 16, heads, 64 * 100, &mut rng);
    let tables: Vec<_> = (0..64).map(|_| cache.table(100)).collect();
    let sequence = Sequence::random(64, heads, &mut rng);
    let (q, kv) = (TokenRows::new(&sequence.q, heads.q_width()), heads.kv_width());
    let mut builder = MetadataBuilder::new(16).unwrap();
    let mut work = WorkList::new();
    let mut scratch = AttentionScratch::new();
    let mut out = vec![0.0; sequence.q.len()];
    let mut step = |context: u32| {
        builder.begin();
        for table in &tables {
            builder.push_row(context, 1, table, MaskKind::Causal).unwrap();
        }
        let metadata = builder.finish();
        work.plan(metadata, 8, &cache.layer).unwrap();
        let (k, v) = (TokenRows::new(&sequence.k, kv), TokenRows::new(&sequence.v, kv));
        let isa = Isa::detect();
        unsafe { cache.layer.write(isa, &metadata.slot_mapping, k, v) }.unwrap();
        let width = heads.q_width();
        let call = AttentionCall::new(isa, metadata, &work, cache.layer, 0.2, q, &mut out, width).unwrap();
        unsafe { call.run_all(&mut scratch) };
    };
    step(98);
    let before = ALLOCATIONS.get();
    for context in 88..99 {
        step(context);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
