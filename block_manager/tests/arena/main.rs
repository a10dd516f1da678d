//! Random operations on one to six groups of unequal blocks, against a naive model of byte ranges: it is told what each
//! operation must do to the lengths of tables, reads the ids of the blocks, and recomputes everything else from them.
#![allow(clippy::unwrap_used)]

mod branches;
mod checks;
mod hits;
mod world;

use std::collections::BTreeMap;

use pagedraft_block_manager::{BlockHash, BlockId, BlockManager, KvGroup, KvJournal, Salt, SequenceId};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const SIZE: u32 = 16;
const FREED: u32 = BlockId::FREED.0;

/// What is drawn of a group.
#[derive(Clone, Debug)]
struct Draw {
    bytes: usize,
    window: Option<u32>,
    prunes: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Open { salted: bool },
    Append { seq: usize, count: u32, flavour: u32 },
    Reserve { seq: usize, more: u32, mask: u8 },
    ReserveLagging { seq: usize, more: u32 },
    ReserveAll { seq: usize, more: u32 },
    Commit { seq: usize, percent: u32, mask: u8 },
    TakeHit { seq: usize, more: u32 },
    TakeLaggingHit { seq: usize },
    Fork { parent: usize, child: usize, percent: u32 },
    RollBack { seq: usize, percent: u32 },
    ClearGroup { seq: usize, group: usize },
    Clear { seq: usize },
    Free { seq: usize },
    ClearCache,
}

fn ops() -> impl Strategy<Value = Op> {
    let seq = || 0usize..8;
    prop_oneof![
        4 => any::<bool>().prop_map(|salted| Op::Open { salted }),
        8 => (seq(), 1u32..60, 0u32..2).prop_map(|(seq, count, flavour)| Op::Append { seq, count, flavour }),
        8 => (seq(), 0u32..40, any::<u8>())
            .prop_map(|(seq, more, mask)| Op::Reserve { seq, more, mask: mask | mask >> 4 }),
        4 => (seq(), 0u32..40).prop_map(|(seq, more)| Op::ReserveLagging { seq, more }),
        4 => (seq(), 0u32..40).prop_map(|(seq, more)| Op::ReserveAll { seq, more }),
        12 => (seq(), 0u32..101, any::<u8>())
            .prop_map(|(seq, percent, mask)| Op::Commit { seq, percent, mask: mask | mask >> 4 }),
        5 => (seq(), 0u32..40).prop_map(|(seq, more)| Op::TakeHit { seq, more }),
        2 => seq().prop_map(|seq| Op::TakeLaggingHit { seq }),
        4 => (seq(), seq(), 50u32..101).prop_map(|(parent, child, percent)| Op::Fork { parent, child, percent }),
        2 => (seq(), 0u32..101).prop_map(|(seq, percent)| Op::RollBack { seq, percent }),
        2 => (seq(), 0usize..6).prop_map(|(seq, group)| Op::ClearGroup { seq, group }),
        2 => seq().prop_map(|seq| Op::Clear { seq }),
        3 => seq().prop_map(|seq| Op::Free { seq }),
        1 => Just(Op::ClearCache),
    ]
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let bytes = prop_oneof![1usize..40, 1usize..2000, Just(64), Just(1024), Just(4096)];
    let window = prop_oneof![2 => Just(None), 1 => (1u32..90).prop_map(Some)];
    let draw = (bytes, window, 0u8..4).prop_map(|(bytes, window, prunes)| Draw {
        bytes,
        window: window.filter(|_| prunes != 0),
        prunes: prunes == 0,
    });
    prop::collection::vec(draw, 1..7)
}

/// A table as it must be.
#[derive(Clone, Debug, Default)]
struct Kept {
    ids: Vec<u32>,
    physical: u32,
    logical: u32,
    positions: Option<Vec<u32>>,
    /// The greatest position that a block was given back for.
    base: u32,
}

#[derive(Clone, Debug)]
struct Seq {
    id: SequenceId,
    twin: SequenceId,
    alive: bool,
    salt: Salt,
    tokens: Vec<u32>,
    tables: Vec<Kept>,
}

struct World {
    real: BlockManager,
    /// The same without the lagging group; `None` where there is none, or where it changes the page.
    twin: Option<BlockManager>,
    groups: Vec<KvGroup>,
    prunes: Vec<bool>,
    seqs: Vec<Seq>,
    /// The published blocks by group and id, replayed from the journal: their salts and tokens up to their ends.
    published: BTreeMap<(usize, u32), (BlockHash, Salt, Vec<u32>)>,
    /// In the order of publication.
    order: Vec<(usize, u32)>,
    journal: KvJournal,
}

/// How many cases: `PROPTEST_CASES` for a campaign, fewer every day.
fn cases(everyday: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(everyday)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(1000),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn groups_of_unequal_blocks_share_an_arena_as_byte_ranges_do(
        num_blocks in 1u32..24,
        draws in draws(),
        scratch in any::<bool>(),
        lagging in any::<bool>(),
        ops in prop::collection::vec(ops(), 1..100),
    ) {
        let mut world = World::new(num_blocks, &draws, scratch, lagging);
        for op in &ops {
            world.apply(op);
        }
        for s in 0..world.seqs.len() {
            if world.seqs[s].alive {
                world.apply_to(s, &Op::Free { seq: s });
            }
        }
        world.check();
        world.check_whole();
    }
}
