//! Random operations on the block manager and on an obvious model of it: after each operation tables, the order of
//! the free blocks, what is published and who holds what are equal, and nothing is lost.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use pagedraft_block_manager::{
    BlockCopy, BlockId, BlockManager, BlockSize, Error, GroupId, KvGroup, Salt, SequenceId,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const SIZE: usize = 16;
const KV: GroupId = GroupId(0);

#[derive(Clone, Debug)]
enum Op {
    Open {
        salted: bool,
    },
    /// New known tokens, drawn from few, so that prefixes repeat.
    Append {
        seq: usize,
        count: usize,
        flavour: u32,
    },
    Reserve {
        seq: usize,
        more: usize,
    },
    ReserveGroup {
        seq: usize,
        group: u8,
        more: usize,
    },
    Commit {
        seq: usize,
        group: u8,
        percent: usize,
    },
    TakeHit {
        seq: usize,
    },
    Fork {
        parent: usize,
        child: usize,
        percent: usize,
    },
    RollBack {
        seq: usize,
        percent: usize,
    },
    Clear {
        seq: usize,
    },
    Free {
        seq: usize,
    },
}

fn ops() -> impl Strategy<Value = Op> {
    let seq = 0usize..8;
    prop_oneof![
        2 => any::<bool>().prop_map(|salted| Op::Open { salted }),
        6 => (seq.clone(), 1usize..40, 0u32..2)
            .prop_map(|(seq, count, flavour)| Op::Append { seq, count, flavour }),
        6 => (seq.clone(), 0usize..20).prop_map(|(seq, more)| Op::Reserve { seq, more }),
        1 => (seq.clone(), 0u8..3, 0usize..20)
            .prop_map(|(seq, group, more)| Op::ReserveGroup { seq, group, more }),
        8 => (seq.clone(), 0u8..2, 0usize..101)
            .prop_map(|(seq, group, percent)| Op::Commit { seq, group, percent }),
        3 => seq.clone().prop_map(|seq| Op::TakeHit { seq }),
        3 => (seq.clone(), seq.clone(), 0usize..101)
            .prop_map(|(parent, child, percent)| Op::Fork { parent, child, percent }),
        2 => (seq.clone(), 0usize..101).prop_map(|(seq, percent)| Op::RollBack { seq, percent }),
        1 => seq.clone().prop_map(|seq| Op::Clear { seq }),
        2 => seq.prop_map(|seq| Op::Free { seq }),
    ]
}

#[derive(Clone, Debug)]
struct Seq {
    id: SequenceId,
    alive: bool,
    salt: Salt,
    tokens: Vec<u32>,
    /// By group: blocks, and committed slots.
    groups: Vec<(Vec<u32>, usize)>,
}

struct Model {
    num_blocks: u32,
    seqs: Vec<Seq>,
    free: Vec<u32>,
    /// Block, group, tokens to its end, salt; in order of publication.
    published: Vec<(u32, usize, Vec<u32>, Salt)>,
}

impl Model {
    fn holders(&self, block: u32) -> usize {
        let tables = self.seqs.iter().flat_map(|seq| &seq.groups);
        tables.filter(|(blocks, _)| blocks.contains(&block)).count()
    }

    fn is_published(&self, block: u32) -> bool {
        self.published.iter().any(|(b, ..)| *b == block)
    }

    fn take(&mut self) -> u32 {
        let block = self.free.remove(0);
        self.published.retain(|(b, ..)| *b != block);
        block
    }

    /// Blocks that left a table, the last one first.
    fn let_go(&mut self, blocks: &[u32]) {
        let mut front = vec![];
        for &block in blocks.iter().rev() {
            if self.holders(block) > 0 {
                continue;
            }
            if self.is_published(block) {
                self.free.push(block);
            } else {
                front.push(block);
            }
        }
        self.free.splice(0..0, front);
    }

    fn find(&self, seq: usize, group: usize, end: usize) -> Option<u32> {
        let seq = &self.seqs[seq];
        let prefix = seq.tokens.get(..end)?;
        let mut all = self.published.iter();
        all.find(|(_, g, t, s)| *g == group && t == prefix && *s == seq.salt).map(|(b, ..)| *b)
    }

    fn hits(&self, seq: usize, limit: usize) -> Vec<Vec<u32>> {
        let groups = self.seqs[seq].groups.len();
        let mut hits: Vec<Vec<u32>> = vec![vec![]; groups];
        for (group, hits) in hits.iter_mut().enumerate() {
            while (hits.len() + 1) * SIZE <= limit {
                let Some(block) = self.find(seq, group, (hits.len() + 1) * SIZE) else {
                    break;
                };
                hits.push(block);
            }
        }
        // The second group lags: it takes what it has of the first one's hit.
        let len = hits[0].len();
        hits.iter_mut().for_each(|hits| hits.truncate(len));
        hits
    }
}

struct Both {
    real: BlockManager,
    model: Model,
}

impl Both {
    fn new(num_blocks: u32, groups: u8) -> Self {
        let list = (0..groups).map(|id| KvGroup { id: GroupId(id), lags: id == 1, ..KvGroup::dense(2, 8) });
        let size = BlockSize::new(SIZE as u32).unwrap();
        Self {
            real: BlockManager::new(size, num_blocks, list.collect(), true).unwrap(),
            model: Model { num_blocks, seqs: vec![], free: (0..num_blocks).collect(), published: vec![] },
        }
    }

    fn apply(&mut self, op: &Op) {
        let count = self.model.seqs.len();
        let pick = |seq: usize| (count > 0).then(|| seq % count);
        match *op {
            Op::Open { salted } => self.open(salted),
            Op::Append { seq, count, flavour } => {
                if let Some(seq) = pick(seq) {
                    let tokens = &mut self.model.seqs[seq].tokens;
                    let upto = tokens.len() + count;
                    tokens.extend((tokens.len()..upto).map(|i| i as u32 * 2 + flavour));
                }
            }
            Op::Reserve { seq, more } => pick(seq).into_iter().for_each(|s| self.reserve(s, more)),
            Op::ReserveGroup { seq, group, more } => {
                pick(seq).into_iter().for_each(|s| self.reserve_group(s, group, more));
            }
            Op::Commit { seq, group, percent } => {
                pick(seq).into_iter().for_each(|s| self.commit(s, group, percent));
            }
            Op::TakeHit { seq } => pick(seq).into_iter().for_each(|s| self.take_hit(s)),
            Op::Fork { parent, child, percent } => {
                if let (Some(parent), Some(child)) = (pick(parent), pick(child)) {
                    self.fork(parent, child, percent);
                }
            }
            Op::RollBack { seq, percent } => {
                pick(seq).into_iter().for_each(|s| self.roll_back(s, percent));
            }
            Op::Clear { seq } => pick(seq).into_iter().for_each(|s| self.clear(s, false)),
            Op::Free { seq } => pick(seq).into_iter().for_each(|s| self.clear(s, true)),
        }
        self.compare();
    }

    fn open(&mut self, salted: bool) {
        let salt = if salted { Salt::of(&[("tenant", "b")]) } else { Salt::NONE };
        let id = self.real.open(salt);
        assert!(self.model.seqs.iter().all(|seq| seq.id != id), "a handle came back");
        let groups = self.real.groups().len();
        self.model.seqs.push(Seq {
            id,
            alive: true,
            salt,
            tokens: vec![],
            groups: vec![(vec![], 0); groups],
        });
    }

    fn reserve(&mut self, s: usize, more: usize) {
        let seq = &self.model.seqs[s];
        let slots = seq.tokens.len() + more;
        let got = self.real.reserve(seq.id, &[slots as u32]);
        if !seq.alive {
            assert!(matches!(got, Err(Error::StaleSequence { .. })));
            return;
        }
        let blocks = slots.div_ceil(SIZE);
        let lacks = |(table, _): &(Vec<u32>, usize)| blocks.saturating_sub(table.len());
        let missing: usize = seq.groups.iter().map(lacks).sum();
        let room = missing <= self.model.free.len();
        assert_eq!(got, Ok(room.then_some(())));
        if room {
            for group in 0..self.real.groups().len() {
                self.grow(s, group, blocks);
            }
        }
    }

    fn reserve_group(&mut self, s: usize, group: u8, more: usize) {
        let seq = &self.model.seqs[s];
        let slots = seq.tokens.len() + more;
        let got = self.real.reserve_group(seq.id, GroupId(group), slots as u32);
        let group = usize::from(group);
        if group >= seq.groups.len() || !seq.alive {
            assert!(got.is_err());
            return;
        }
        let blocks = slots.div_ceil(SIZE);
        let room = blocks.saturating_sub(seq.groups[group].0.len()) <= self.model.free.len();
        assert_eq!(got, Ok(room.then_some(())));
        if room {
            self.grow(s, group, blocks);
        }
    }

    fn grow(&mut self, s: usize, group: usize, blocks: usize) {
        while self.model.seqs[s].groups[group].0.len() < blocks {
            let block = self.model.take();
            self.model.seqs[s].groups[group].0.push(block);
        }
    }

    fn commit(&mut self, s: usize, group: u8, percent: usize) {
        let seq = self.model.seqs[s].clone();
        let upto = seq.tokens.len() * percent / 100;
        let got = self.real.commit(seq.id, GroupId(group), &seq.tokens, upto as u32);
        let group = usize::from(group);
        if group >= seq.groups.len() || !seq.alive {
            assert!(got.is_err());
            return;
        }
        let (table, committed) = &seq.groups[group];
        if upto > table.len() * SIZE {
            assert!(matches!(got, Err(Error::CommitBeyondReserved { .. })));
        } else if upto < *committed {
            assert!(matches!(got, Err(Error::CommitBackwards { .. })));
        } else {
            let full = committed / SIZE..upto / SIZE;
            assert_eq!(got, Ok(full.start as u32..full.end as u32));
            self.model.seqs[s].groups[group].1 = upto;
            for (end, &block) in (full.start + 1..).zip(&table[full]) {
                let prefix = seq.tokens[..end * SIZE].to_vec();
                self.model.published.push((block, group, prefix, seq.salt));
            }
        }
    }

    fn take_hit(&mut self, s: usize) {
        let seq = self.model.seqs[s].clone();
        let limit = seq.tokens.len().saturating_sub(1);
        let Ok(hit) = self.real.lookup(seq.id, &seq.tokens, limit as u32) else {
            assert!(!seq.alive);
            return;
        };
        let hits = self.model.hits(s, limit);
        assert_eq!(hit.tokens as usize, hits[0].len() * SIZE);
        assert_eq!(hit.blocks as usize, hits.iter().map(Vec::len).sum::<usize>());
        let from_free = hits.iter().flatten().filter(|b| self.model.free.contains(b));
        assert_eq!(hit.free_blocks as usize, from_free.count());
        let got = self.real.take_hit(seq.id, &seq.tokens, &hit);
        if seq.groups.iter().any(|(table, _)| !table.is_empty()) {
            assert!(matches!(got, Err(Error::NotEmpty { .. })));
            return;
        }
        assert_eq!(got, Ok(()));
        for (group, hits) in hits.into_iter().enumerate() {
            self.model.free.retain(|block| !hits.contains(block));
            let len = hits.len() * SIZE;
            self.model.seqs[s].groups[group] = (hits, len);
        }
    }

    fn fork(&mut self, p: usize, c: usize, percent: usize) {
        let (parent, child) = (self.model.seqs[p].clone(), self.model.seqs[c].clone());
        let len = parent.tokens.len() * percent / 100;
        let mut copies = vec![];
        let got = self.real.fork(parent.id, child.id, len as u32, &mut copies);
        let filled = child.groups.iter().any(|(table, _)| !table.is_empty());
        let related = p != c && parent.salt == child.salt;
        if !parent.alive || !child.alive || !related || filled || len > parent.groups[0].1 {
            assert!(got.is_err());
            assert_eq!(copies, []);
            return;
        }
        let lens: Vec<usize> = parent.groups.iter().map(|(_, n)| len.min(*n)).collect();
        let fresh = lens.iter().filter(|n| *n % SIZE != 0).count();
        if fresh > self.model.free.len() {
            assert_eq!((got, copies), (Ok(None), vec![]));
            return;
        }
        assert_eq!(got, Ok(Some(())));
        let mut expected = vec![];
        for (group, &slots) in lens.iter().enumerate() {
            let (source, _) = &parent.groups[group];
            let mut table = source[..slots / SIZE].to_vec();
            if slots % SIZE != 0 {
                let (src, dst) = (BlockId(source[slots / SIZE]), BlockId(self.model.take()));
                table.push(dst.0);
                expected.push(BlockCopy { group: KV, src, dst });
            }
            self.model.seqs[c].groups[group] = (table, slots);
        }
        assert_eq!(copies, expected);
        // A fork knows the tokens it has the KV of.
        self.model.seqs[c].tokens = parent.tokens[..len].to_vec();
    }

    fn roll_back(&mut self, s: usize, percent: usize) {
        let (id, alive) = (self.model.seqs[s].id, self.model.seqs[s].alive);
        let len = self.model.seqs[s].tokens.len() * percent / 100;
        for group in 0..self.model.seqs[s].groups.len() {
            let mut copies = vec![];
            let got = self.real.truncate(id, GroupId(group as u8), len as u32, &mut copies);
            if !alive {
                assert!(matches!(got, Err(Error::StaleSequence { .. })));
                return;
            }
            let (table, committed) = self.model.seqs[s].groups[group].clone();
            let keep = len.div_ceil(SIZE).min(table.len());
            let cut = len / SIZE < committed / SIZE && !len.is_multiple_of(SIZE);
            let shared = cut && self.model.holders(table[keep - 1]) > 1;
            let behind = &table[keep..];
            let frees = behind.iter().any(|&b| self.model.holders(b) == 1);
            if shared && self.model.free.is_empty() && !frees {
                assert_eq!((got, copies), (Ok(None), vec![]));
                return;
            }
            assert_eq!(got, Ok(Some(())));
            self.model.seqs[s].groups[group].0.truncate(keep);
            self.model.let_go(behind);
            let mut expected = vec![];
            if shared {
                let (src, dst) = (BlockId(table[keep - 1]), BlockId(self.model.take()));
                self.model.seqs[s].groups[group].0[keep - 1] = dst.0;
                expected.push(BlockCopy { group: KV, src, dst });
            } else if cut {
                self.model.published.retain(|(b, ..)| *b != table[keep - 1]);
            }
            assert_eq!(copies, expected);
            self.model.seqs[s].groups[group].1 = committed.min(len);
        }
        self.model.seqs[s].tokens.truncate(len);
    }

    fn clear(&mut self, s: usize, free: bool) {
        let seq = self.model.seqs[s].clone();
        let got = if free { self.real.free(seq.id) } else { self.real.clear(seq.id) };
        assert_eq!(got.is_ok(), seq.alive);
        for (group, (table, _)) in seq.groups.iter().enumerate() {
            self.model.seqs[s].groups[group] = (vec![], 0);
            self.model.let_go(table);
        }
        self.model.seqs[s].alive &= !free;
    }

    fn compare(&self) {
        let (real, model) = (&self.real, &self.model);
        let stats = real.stats();
        assert_eq!(stats.used + stats.free, stats.num_blocks);
        assert_eq!(stats.num_blocks, model.num_blocks);
        let order: Vec<u32> = real.pool().free_order(KV).map(|b| b.0).collect();
        assert_eq!(order, model.free);
        let cached = model.free.iter().filter(|b| model.is_published(**b)).count();
        assert_eq!(stats.cached as usize, cached);
        let mut held = BTreeSet::new();
        for seq in &model.seqs {
            for (group, (blocks, committed)) in seq.groups.iter().enumerate() {
                let group = GroupId(group as u8);
                let table: Vec<u32> = real.block_table(seq.id, group).iter().map(|b| b.0).collect();
                assert_eq!(&table, blocks);
                if seq.alive {
                    let lengths = real.lengths(seq.id, group).unwrap();
                    assert_eq!((lengths.physical, lengths.logical), (*committed as u32, *committed as u32));
                }
                for &block in &blocks[committed / SIZE..] {
                    assert_eq!(real.pool().holders(KV, BlockId(block)), 1, "a writable block has two owners");
                    assert!(!real.pool().is_published(KV, BlockId(block)), "published before commit");
                }
                held.extend(table);
            }
        }
        assert_eq!(held.len() as u32, stats.used);
        for block in 0..model.num_blocks {
            assert_eq!(real.pool().holders(KV, BlockId(block)) as usize, model.holders(block));
            assert_eq!(real.pool().is_published(KV, BlockId(block)), model.is_published(block));
        }
    }
}

/// How many cases: `PROPTEST_CASES` for a campaign, fewer every day.
fn cases(everyday: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(everyday)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(3000),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_operations_do_what_the_obvious_model_does(
        num_blocks in 1u32..20,
                ops in prop::collection::vec(ops(), 1..80),
    ) {
        let mut both = Both::new(num_blocks, 1);
        for op in &ops {
            both.apply(op);
        }
        for s in 0..both.model.seqs.len() {
            if both.model.seqs[s].alive {
                both.clear(s, true);
            }
        }
        both.compare();
        let stats = both.real.stats();
        prop_assert_eq!(stats.free, stats.num_blocks);
    }
}
