//! The rules of the pool, one at a time.
#![allow(clippy::unwrap_used)]

use pagedraft_block_manager::{
    BlockCopy, BlockHash, BlockId, BlockManager, BlockPool, BlockSize, Contents, Error, GroupId, KvEventKind,
    KvGroup, KvIndex, KvJournal, PrefixHit, Salt, SequenceId, slot,
};

const KV: GroupId = GroupId(0);

fn manager(num_blocks: u32) -> BlockManager {
    let size = BlockSize::new(16).unwrap();
    BlockManager::new(size, num_blocks, vec![KvGroup::dense(1, 1)], true).unwrap()
}

fn ids(manager: &BlockManager, sequence: SequenceId) -> Vec<u32> {
    let table = manager.block_table(sequence, KV);
    table.iter().map(|block| block.0).collect()
}

/// A sequence with the KV of `tokens` committed.
fn filled(manager: &mut BlockManager, tokens: &[u32]) -> SequenceId {
    let sequence = manager.open(Salt::NONE);
    let len = tokens.len() as u32;
    assert_eq!(manager.reserve(sequence, &[len]), Ok(Some(())));
    manager.commit(sequence, KV, tokens, len).unwrap();
    sequence
}

fn numbered(prefix: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| prefix * 10_000 + i).collect()
}

#[test]
fn a_cache_that_is_cleared_while_nobody_holds_a_block_leaves_a_pool_as_new() {
    let mut manager = manager(64);
    let sequences: Vec<_> = (0..3).map(|i| filled(&mut manager, &numbered(i, 40))).collect();
    for &sequence in sequences.iter().rev() {
        manager.free(sequence).unwrap();
    }
    let held = filled(&mut manager, &numbered(7, 16));
    let block = ids(&manager, held);
    manager.clear_cache();
    assert_eq!(ids(&manager, held), block, "nobody's blocks change");
    manager.free(held).unwrap();
    manager.clear_cache();
    let again = filled(&mut manager, &numbered(8, 64 * 16));
    assert_eq!(ids(&manager, again), (0..64).collect::<Vec<_>>());
    manager.free(again).unwrap();
}

#[test]
fn blocks_are_handed_out_in_order_from_zero() {
    let mut manager = manager(200);
    let sequences: Vec<_> = (0..8).map(|i| filled(&mut manager, &numbered(i, 256))).collect();
    for (i, &sequence) in (0..).zip(&sequences) {
        let expected: Vec<u32> = (i * 16..i * 16 + 16).collect();
        assert_eq!(ids(&manager, sequence), expected);
    }
    for (i, &sequence) in (0..).zip(&sequences) {
        manager.reserve(sequence, &[259]).unwrap().unwrap();
        assert_eq!(ids(&manager, sequence)[16], 128 + i);
    }
}

#[test]
fn a_freed_unpublished_tail_is_the_next_block_out() {
    let mut manager = manager(10);
    let sequence = manager.open(Salt::NONE);
    manager.reserve(sequence, &[48]).unwrap().unwrap();
    manager.free(sequence).unwrap();
    let order: Vec<u32> = manager.pool().free_order(KV).map(|b| b.0).collect();
    assert_eq!(order, [2, 1, 0, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn published_blocks_are_evicted_least_recently_freed_and_tail_first() {
    let mut manager = manager(5);
    let old = filled(&mut manager, &numbered(0, 32));
    let new = filled(&mut manager, &numbered(1, 32));
    manager.free(old).unwrap();
    manager.free(new).unwrap();
    let order: Vec<u32> = manager.pool().free_order(KV).map(|b| b.0).collect();
    assert_eq!(order, [4, 1, 0, 3, 2]);
    assert_eq!(manager.stats().cached, 4);

    // Three fresh blocks cost the older prefix, and that one alone.
    let other = manager.open(Salt::NONE);
    manager.reserve(other, &[48]).unwrap().unwrap();
    let probe = manager.open(Salt::NONE);
    assert_eq!(manager.lookup(probe, &numbered(0, 32), 32).unwrap().tokens, 0);
    let probe = manager.open(Salt::NONE);
    assert_eq!(manager.lookup(probe, &numbered(1, 32), 32).unwrap().tokens, 32);
}

#[test]
fn a_block_is_not_published_before_its_last_token_is_committed() {
    let mut manager = manager(4);
    let tokens = numbered(0, 16);
    let sequence = manager.open(Salt::NONE);
    manager.reserve(sequence, &[16]).unwrap().unwrap();
    let probe = manager.open(Salt::NONE);
    for upto in [0, 15] {
        manager.commit(sequence, KV, &tokens, upto).unwrap();
        assert_eq!(manager.lookup(probe, &tokens, 16).unwrap().tokens, 0);
    }
    manager.commit(sequence, KV, &tokens, 16).unwrap();
    assert_eq!(manager.lookup(probe, &tokens, 16).unwrap().tokens, 16);
}

#[test]
fn a_hit_ends_a_token_before_the_limit_in_whole_blocks() {
    let mut manager = manager(64);
    let tokens = numbered(0, 513);
    filled(&mut manager, &tokens[..512]);
    let probe = manager.open(Salt::NONE);
    assert_eq!(manager.lookup(probe, &tokens[..512], 511).unwrap().tokens, 496);
    assert_eq!(manager.lookup(probe, &tokens, 512).unwrap().tokens, 512);
}

#[test]
fn the_first_published_of_equal_blocks_is_hit_and_then_its_twin() {
    let mut manager = manager(4);
    let tokens = numbered(0, 17);
    let first = filled(&mut manager, &tokens[..16]);
    let twin = filled(&mut manager, &tokens[..16]);
    let hit_by = |manager: &mut BlockManager| {
        let probe = manager.open(Salt::NONE);
        let hit = manager.lookup(probe, &tokens, 16).unwrap();
        manager.take_hit(probe, &tokens, &hit).unwrap();
        let table = ids(manager, probe);
        manager.free(probe).unwrap();
        table
    };
    assert_eq!(hit_by(&mut manager), [0]);
    manager.free(first).unwrap();
    // Two never used, and the first: the pool hands it out again and its twin is found instead.
    let eater = manager.open(Salt::NONE);
    manager.reserve(eater, &[48]).unwrap().unwrap();
    assert_eq!(hit_by(&mut manager), [1]);
    manager.free(twin).unwrap();
}

#[test]
fn prefixes_are_not_shared_across_salts() {
    let mut manager = manager(4);
    let tokens = numbered(0, 16);
    filled(&mut manager, &tokens);
    let other = manager.open(Salt::of(&[("tenant", "b")]));
    assert_eq!(manager.lookup(other, &tokens, 16).unwrap().tokens, 0);
}

#[test]
fn a_fork_shares_full_blocks_and_copies_the_one_it_cuts() {
    let mut manager = manager(8);
    let tokens = numbered(0, 40);
    let parent = filled(&mut manager, &tokens);
    let child = manager.open(Salt::NONE);
    let mut copies = vec![];
    let forked = manager.fork(parent, child, 39, &mut copies);
    assert_eq!(forked, Ok(Some(())));
    assert_eq!(ids(&manager, child), [0, 1, 3]);
    let copy = BlockCopy { group: KV, src: BlockId(2), dst: BlockId(3) };
    assert_eq!(copies, [copy]);
    let holders: Vec<u32> = (0..4).map(|b| manager.pool().holders(KV, BlockId(b))).collect();
    assert_eq!(holders, [2, 2, 1, 1]);
    manager.free(parent).unwrap();
    assert_eq!(manager.stats().used, 3);
    manager.free(child).unwrap();
    assert_eq!(manager.stats().used, 0);
}

#[test]
fn going_back_into_a_shared_block_copies_it() {
    let mut manager = manager(8);
    let tokens = numbered(0, 32);
    let parent = filled(&mut manager, &tokens);
    let child = manager.open(Salt::NONE);
    let mut copies = vec![];
    manager.fork(parent, child, 32, &mut copies).unwrap().unwrap();
    assert_eq!(copies, []);
    manager.truncate(child, KV, 20, &mut copies).unwrap().unwrap();
    assert_eq!((ids(&manager, child), copies.len()), (vec![0, 2], 1));
    assert_eq!(ids(&manager, parent), [0, 1]);
}

#[test]
fn going_back_into_a_block_of_ones_own_takes_it_out_of_the_cache() {
    let mut manager = manager(8);
    let tokens = numbered(0, 32);
    let sequence = filled(&mut manager, &tokens);
    let mut copies = vec![];
    manager.truncate(sequence, KV, 20, &mut copies).unwrap().unwrap();
    assert_eq!(copies, []);
    assert!(!manager.pool().is_published(KV, BlockId(1)));
    let mut other = tokens.clone();
    other[25] = 7;
    manager.commit(sequence, KV, &other, 32).unwrap();
    let probe = manager.open(Salt::NONE);
    assert_eq!(manager.lookup(probe, &tokens, 32).unwrap().tokens, 16);
    let probe = manager.open(Salt::NONE);
    assert_eq!(manager.lookup(probe, &other, 32).unwrap().tokens, 32);
}

#[test]
fn a_pruned_group_has_two_lengths_and_publishes_nothing() {
    let size = BlockSize::new(16).unwrap();
    let whole = KvGroup::dense(4, 8);
    let pruned = KvGroup { id: GroupId(1), name: "after layer 4".to_owned(), ..whole.clone() };
    let mut manager = BlockManager::new(size, 10, vec![whole, pruned], true).unwrap();
    let tokens = numbered(0, 64);
    let sequence = manager.open(Salt::NONE);
    manager.reserve_group(sequence, KV, 64).unwrap().unwrap();
    manager.reserve_group(sequence, GroupId(1), 32).unwrap().unwrap();
    manager.commit(sequence, KV, &tokens, 64).unwrap();
    let kept: Vec<u32> = (0..32).map(|i| i * 2).collect();
    manager.commit_kept(sequence, GroupId(1), &kept, 64).unwrap();
    let lengths = manager.lengths(sequence, GroupId(1)).unwrap();
    assert_eq!((lengths.physical, lengths.logical), (32, 64));
    assert_eq!(manager.stats().used, 6);
    // A hit would need both groups.
    let probe = manager.open(Salt::NONE);
    assert_eq!(manager.lookup(probe, &tokens, 64).unwrap().tokens, 0);
    let cut = manager.truncate(sequence, GroupId(1), 16, &mut vec![]);
    assert!(matches!(cut, Err(Error::Pruned { .. })));
}

#[test]
fn what_a_pruned_group_kept_dies_with_its_blocks_and_grows_at_its_end() {
    let mut manager = manager(8);
    let sequence = manager.open(Salt::NONE);
    manager.reserve(sequence, &[48]).unwrap().unwrap();
    let kept: Vec<u32> = (0..40).filter(|i| i % 2 == 0).collect();
    manager.commit_kept(sequence, KV, &kept, 40).unwrap();
    assert_eq!(manager.index(sequence, KV), KvIndex::Explicit(&kept));
    assert_eq!(ids(&manager, sequence), [0, 1], "the block behind the kept ones went");
    assert_eq!(manager.slots(sequence, KV, 45), Ok(25));
    manager.commit(sequence, KV, &numbered(0, 42), 42).unwrap();
    let longer: Vec<u32> = kept.iter().copied().chain([40, 41]).collect();
    assert_eq!(manager.index(sequence, KV), KvIndex::Explicit(&longer));
    // A full block does not change any more, and positions ascend.
    let other = manager.commit_kept(sequence, KV, &[0, 1, 2], 42);
    assert!(matches!(other, Err(Error::KeptDiffers { slot: 1, .. })));
    let order = manager.commit_kept(sequence, KV, &[0, 2, 2], 42);
    assert!(matches!(order, Err(Error::KeptOrder { index: 1, .. })));
    manager.clear(sequence).unwrap();
    assert_eq!(manager.index(sequence, KV), KvIndex::Position);
    assert_eq!(manager.stats().cached, 0, "nothing was published");
}

#[test]
fn a_pruned_group_takes_no_hit_while_the_others_take_theirs() {
    let size = BlockSize::new(16).unwrap();
    let pruned = KvGroup { id: GroupId(1), ..KvGroup::dense(1, 3) };
    let mut manager = BlockManager::new(size, 8, vec![KvGroup::dense(1, 1), pruned], true).unwrap();
    let tokens = numbered(0, 64);
    let first = manager.open(Salt::NONE);
    manager.reserve(first, &[48, 16]).unwrap().unwrap();
    manager.commit(first, KV, &tokens, 48).unwrap();
    let second = manager.open(Salt::NONE);
    let hit = manager.lookup(second, &tokens, 63).unwrap();
    assert_eq!((hit.tokens, hit.blocks, &hit.lens[..2]), (0, 3, &[48, 0][..]));
    manager.take_hit(second, &tokens, &hit).unwrap();
    assert_eq!(ids(&manager, second), ids(&manager, first));
    assert_eq!(manager.block_table(second, GroupId(1)), []);
}

#[test]
fn a_group_evicts_its_own_block_rather_than_take_a_page_that_another_needs() {
    let size = BlockSize::new(16).unwrap();
    let large = KvGroup { id: GroupId(1), ..KvGroup::dense(1, 8) };
    let mut manager = BlockManager::new(size, 2, vec![KvGroup::dense(1, 4), large], true).unwrap();
    assert_eq!((manager.arena().num_pages(), manager.arena().groups()[0].per_page), (3, 2));
    // A page of small blocks of which one is held and one cached; two pages are empty.
    let tokens = numbered(0, 32);
    let first = manager.open(Salt::NONE);
    manager.reserve(first, &[32, 0]).unwrap().unwrap();
    manager.commit(first, KV, &tokens, 32).unwrap();
    let second = manager.open(Salt::NONE);
    let hit = manager.lookup(second, &tokens, 16).unwrap();
    manager.take_hit(second, &tokens, &hit).unwrap();
    manager.free(first).unwrap();
    assert_eq!((manager.group_stats(KV).used, manager.group_stats(KV).cached), (1, 1));
    // One small block and both empty pages: the small one must be the cached one.
    let third = manager.open(Salt::NONE);
    assert_eq!(manager.reserve(third, &[16, 32]), Ok(Some(())));
    assert_eq!(manager.group_stats(KV).cached, 0);
}

#[test]
fn a_stale_handle_never_names_a_new_sequence() {
    let mut manager = manager(4);
    let old = filled(&mut manager, &numbered(0, 16));
    manager.free(old).unwrap();
    let new = filled(&mut manager, &numbered(1, 16));
    assert_ne!(old, new);
    assert_eq!(manager.free(old), Err(Error::StaleSequence { sequence: old }));
    assert_eq!(manager.block_table(old, KV), []);
    assert_eq!(manager.stats().used, 1);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for given in [0, 1, 8, 17, 48, 128] {
        assert_eq!(BlockSize::new(given), Err(Error::BlockSize { given }));
    }
    let size = BlockSize::new(32).unwrap();
    let made = |blocks, groups| BlockManager::new(size, blocks, groups, true).map(|_| ());
    assert_eq!(made(0, vec![KvGroup::dense(1, 1)]), Err(Error::NoBlocks));
    assert_eq!(made(1, vec![]), Err(Error::NoGroups));
    let two = |id, bytes_per_token| {
        let second =
            KvGroup { id: GroupId(id), name: "indexer".to_owned(), ..KvGroup::dense(1, bytes_per_token) };
        vec![KvGroup::dense(1, 64), second]
    };
    assert!(matches!(made(1, two(2, 64)), Err(Error::GroupOrder { .. })));
    assert_eq!(made(1, two(1, 16)), Ok(()), "blocks may differ in size");
    let empty = made(1, two(1, 0)).unwrap_err().to_string();
    assert!(empty.contains("`indexer` has 0 bytes a token"), "{empty}");
    let many = (0..25).map(|id| KvGroup { id: GroupId(id), ..KvGroup::dense(1, 1) });
    assert_eq!(made(1, many.collect()), Err(Error::TooManyGroups { given: 25 }));
    let blind = KvGroup { window: Some(0), ..KvGroup::dense(1, 1) };
    assert_eq!(made(1, vec![blind]), Err(Error::EmptyWindow { name: "kv".to_owned() }));
}

#[test]
fn layers_that_see_nothing_before_the_query_hit_nothing() {
    let hits = [1, 2].map(|window| {
        let group = KvGroup { window: Some(window), ..KvGroup::dense(1, 1) };
        let mut manager = BlockManager::new(BlockSize::new(16).unwrap(), 8, vec![group], true).unwrap();
        let tokens: Vec<u32> = (0..40).collect();
        let probe = manager.open(Salt::NONE);
        let empty = manager.lookup(probe, &tokens, 39).unwrap();
        assert_eq!(empty, PrefixHit::default(), "window {window}: nothing was published");
        filled(&mut manager, &tokens);
        manager.lookup(probe, &tokens, 39).unwrap().tokens
    });
    assert_eq!(hits, [0, 32]);
}

#[test]
fn a_slot_is_where_the_table_says() {
    let table = [BlockId(7), BlockId(2)];
    assert_eq!(slot(&table, 0, 16), Some(112));
    assert_eq!(slot(&table, 17, 16), Some(33));
    assert_eq!(slot(&table, 32, 16), None);
    assert_eq!(slot(&table, 0, 0), None);
}

#[test]
fn no_room_is_none_and_takes_nothing() {
    let mut manager = manager(2);
    let sequence = manager.open(Salt::NONE);
    assert_eq!(manager.reserve(sequence, &[33]), Ok(None));
    assert_eq!(manager.stats().used, 0);
    assert_eq!(manager.reserve(sequence, &[32]), Ok(Some(())));
}

#[test]
fn a_lease_ends_by_being_given_back() {
    let mut pool = BlockPool::new(2).unwrap();
    let first = pool.allocate(KV).unwrap();
    let second = pool.allocate(KV).unwrap();
    assert!(pool.allocate(KV).is_none());
    let hash = BlockHash::of(&BlockHash::ROOT, &[1; 16], &Salt::NONE);
    let sealed = pool.seal(first, Some(Contents { hash, parent: None, tokens: &[1; 16] }));
    let shared = pool.share(&sealed);
    let sealed = pool.unseal(sealed).unwrap_err();
    pool.release(sealed);
    assert_eq!(pool.stats().used, 2);
    let writable = pool.unseal(shared).unwrap();
    assert!(pool.lookup(&hash, KV).is_none());
    pool.release(writable);
    pool.release(second);
    assert_eq!(pool.stats().free, 2);
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "the lease of block 0 was dropped")]
fn a_lease_that_is_dropped_is_reported_in_debug_builds() {
    let mut pool = BlockPool::new(2).unwrap();
    drop(pool.allocate(KV));
}

#[test]
fn a_prefix_that_comes_back_from_elsewhere_is_hit_and_a_lost_block_is_not() {
    let mut manager = manager(6);
    manager.keep_journal(true);
    let tokens: Vec<u32> = (0..80).collect();
    let compute = |manager: &mut BlockManager, tokens: &[u32]| {
        let sequence = manager.open(Salt::NONE);
        let hit = manager.lookup(sequence, tokens, tokens.len() as u32).unwrap();
        manager.take_hit(sequence, tokens, &hit).unwrap();
        manager.reserve(sequence, &[tokens.len() as u32]).unwrap().unwrap();
        manager.commit_all(sequence, tokens, tokens.len() as u32).unwrap();
        manager.free(sequence).unwrap();
        hit.tokens
    };
    assert_eq!(compute(&mut manager, &tokens), 0);
    // Another prompt takes four of the six blocks, and with them the last ones of the first prompt.
    assert_eq!(compute(&mut manager, &(100..164).collect::<Vec<u32>>()), 0);
    let mut journal = KvJournal::default();
    manager.drain_journal(&mut journal);
    let gone: Vec<_> = journal
        .events
        .iter()
        .filter(|event| event.kind == KvEventKind::Removed)
        .map(|event| event.hash)
        .collect();
    assert_eq!(gone.len(), 3);
    let restore = manager.begin_restore(Salt::NONE, &tokens, 79, &mut |hash| gone.contains(hash));
    let restore = restore.unwrap().unwrap();
    assert_eq!(restore.blocks.len(), 2, "the last of the five has a token that is computed in any case");
    assert!(restore.blocks.iter().all(|(_, hash)| gone.contains(hash)));
    let lost = restore.blocks[1].0;
    manager.end_restore(restore, &tokens, 2).unwrap();
    manager.drain_journal(&mut journal);
    let kinds: Vec<_> = journal.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds[kinds.len() - 2..], [KvEventKind::Restored; 2]);
    assert_eq!(manager.stats().used, 0);
    assert!(manager.unpublish(GroupId(0), lost) && !manager.unpublish(GroupId(0), lost));
    manager.drain_journal(&mut journal);
    assert_eq!(journal.events.last().map(|event| (event.kind, event.block)), Some((KvEventKind::Lost, lost)));
    assert_eq!(compute(&mut manager, &tokens), 48, "three of four blocks are left");
    // What was not filled is given back, and cannot be hit.
    manager.clear_cache();
    let none = manager.begin_restore(Salt::NONE, &tokens, 79, &mut |_| false).unwrap();
    assert!(none.is_none());
    let restore = manager.begin_restore(Salt::NONE, &tokens, 79, &mut |_| true).unwrap().unwrap();
    assert_eq!(restore.blocks.len(), 4);
    manager.end_restore(restore, &tokens, 1).unwrap();
    assert_eq!((manager.stats().used, manager.stats().cached), (0, 1));
    let wide =
        manager.begin_restore(Salt::NONE, &(0..200).collect::<Vec<u32>>(), 199, &mut |_| true).unwrap();
    assert!(wide.is_none() && manager.stats().used == 0, "there is no room for twelve blocks");
}
