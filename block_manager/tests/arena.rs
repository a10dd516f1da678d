//! Random operations on one to six groups of unequal blocks, against a naive model of byte ranges: it is told what each
//! operation must do to the lengths of tables, reads the ids of the blocks, and recomputes everything else from them.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use pagedraft_block_manager::{
    BlockHash, BlockId, BlockManager, BlockSize, Error, GroupId, KvEventKind, KvGroup, KvIndex, KvJournal,
    KvPart, LayerSet, PartKind, PrefixHit, Salt, SequenceId,
};
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

fn group(id: usize, draw: &Draw) -> KvGroup {
    KvGroup { id: GroupId(id as u8), window: draw.window, ..KvGroup::dense(1, draw.bytes) }
}

impl World {
    fn new(num_blocks: u32, draws: &[Draw], scratch: bool, lagging: bool) -> Self {
        let mut groups: Vec<KvGroup> = draws.iter().enumerate().map(|(id, draw)| group(id, draw)).collect();
        let mut prunes: Vec<bool> = draws.iter().map(|draw| draw.prunes).collect();
        if scratch && groups.len() > 1 {
            let part = KvPart {
                kind: PartKind::Residual,
                layers: LayerSet::range(0..1),
                bytes_per_token: draws[1].bytes,
            };
            groups[1] = KvGroup { parts: vec![part], window: None, ..groups[1].clone() };
            prunes[1] = false;
        }
        let last = groups.len() - 1;
        if lagging && last > 0 && !groups[last].is_scratch() {
            groups[last].lags = true;
            prunes[last] = false;
        }
        let size = BlockSize::new(SIZE).unwrap();
        let make = |groups: &[KvGroup]| {
            let mut made = BlockManager::new(size, num_blocks, groups.to_vec(), true).unwrap();
            made.keep_journal(true);
            made
        };
        let real = make(&groups);
        let mut twin = None;
        if groups[last].lags {
            let without = make(&groups[..last]);
            let page =
                |manager: &BlockManager| (manager.arena().page_bytes(), manager.arena().primary_pages());
            if page(&without) == page(&real) {
                twin = Some(without);
            } else {
                assert!(groups[last].block_bytes(size) > without.arena().page_bytes());
            }
        }
        Self {
            real,
            twin,
            groups,
            prunes,
            seqs: vec![],
            published: BTreeMap::new(),
            order: vec![],
            journal: KvJournal::default(),
        }
    }

    fn lagging(&self) -> Option<usize> {
        self.groups.iter().position(|group| group.lags)
    }

    fn apply(&mut self, op: &Op) {
        let count = self.seqs.len();
        let pick = |seq: &usize| (count > 0).then(|| seq % count);
        match op {
            Op::Open { salted } => self.open(*salted),
            Op::ClearCache => {
                self.real.clear_cache();
                self.twin.iter_mut().for_each(BlockManager::clear_cache);
            }
            Op::Fork { parent, child, percent } => {
                if let (Some(parent), Some(child)) = (pick(parent), pick(child)) {
                    self.fork(parent, child, *percent);
                }
            }
            Op::Append { seq, .. }
            | Op::Reserve { seq, .. }
            | Op::ReserveLagging { seq, .. }
            | Op::ReserveAll { seq, .. }
            | Op::Commit { seq, .. }
            | Op::TakeHit { seq, .. }
            | Op::TakeLaggingHit { seq }
            | Op::RollBack { seq, .. }
            | Op::ClearGroup { seq, .. }
            | Op::Clear { seq }
            | Op::Free { seq } => {
                if let Some(s) = pick(seq).filter(|s| self.seqs[*s].alive) {
                    self.apply_to(s, op);
                }
            }
        }
        self.check();
    }

    fn apply_to(&mut self, s: usize, op: &Op) {
        match *op {
            Op::Append { count, flavour, .. } => {
                let tokens = &mut self.seqs[s].tokens;
                let upto = tokens.len() as u32 + count;
                tokens.extend((tokens.len() as u32..upto).map(|i| i * 2 + flavour));
            }
            Op::Reserve { more, mask, .. } => {
                let need = self.need(s, more, |index, group| !group.lags && mask >> index & 1 == 1);
                self.reserve(s, &need);
            }
            Op::ReserveLagging { more, .. } => {
                let need = self.need(s, more, |_, group| group.lags);
                if let Some(group) = self.lagging() {
                    let mut want = vec![0; self.groups.len()];
                    self.real.missing(self.seqs[s].id, &need, &mut want).unwrap();
                    let room = self.real.has_room(&want);
                    assert_eq!(room, self.naive_room(&want));
                    let id = self.seqs[s].id;
                    let got = self.real.reserve_group(id, GroupId(group as u8), need[group]);
                    assert_eq!(got, Ok(room.then_some(())));
                    if room {
                        self.grown(s, &need);
                    }
                }
            }
            Op::ReserveAll { more, .. } if self.twin.is_none() => {
                let need = self.need(s, more, |_, _| true);
                self.reserve(s, &need);
            }
            Op::Commit { percent, mask, .. } => {
                for group in (0..self.groups.len()).filter(|group| mask >> group & 1 == 1) {
                    self.commit(s, group, percent);
                }
            }
            Op::TakeHit { more, .. } => self.take_hit(s, more),
            Op::TakeLaggingHit { .. } => self.take_lagging_hit(s),
            Op::RollBack { percent, .. } => self.roll_back(s, percent),
            Op::ClearGroup { group, .. } => {
                let index = group % self.groups.len();
                let id = GroupId(index as u8);
                self.real.clear_group(self.seqs[s].id, id).unwrap();
                if let Some(twin) = self.twin.as_mut().filter(|_| !self.groups[index].lags) {
                    twin.clear_group(self.seqs[s].twin, id).unwrap();
                }
                self.seqs[s].tables[index] = Kept::default();
            }
            Op::Clear { .. } | Op::Free { .. } => {
                let ends = matches!(op, Op::Free { .. });
                let seq = &mut self.seqs[s];
                let end = |manager: &mut BlockManager, id: SequenceId| {
                    if ends { manager.free(id) } else { manager.clear(id) }.unwrap();
                };
                end(&mut self.real, seq.id);
                self.twin.iter_mut().for_each(|twin| end(twin, seq.twin));
                seq.tables.iter_mut().for_each(|table| *table = Kept::default());
                seq.alive = !ends;
            }
            _ => {}
        }
    }

    fn open(&mut self, salted: bool) {
        let salt = if salted { Salt::of(&[("tenant", "b")]) } else { Salt::NONE };
        let id = self.real.open(salt);
        let twin = self.twin.as_mut().map_or(id, |twin| twin.open(salt));
        let tables = vec![Kept::default(); self.groups.len()];
        self.seqs.push(Seq { id, twin, alive: true, salt, tokens: vec![], tables });
    }

    /// Slots by group for the known tokens and `more`, in the groups asked for.
    fn need(&self, s: usize, more: u32, which: impl Fn(usize, &KvGroup) -> bool) -> Vec<u32> {
        let seq = &self.seqs[s];
        let positions = seq.tokens.len() as u32 + more;
        let slots = |(index, group): (usize, &KvGroup)| {
            let table = &seq.tables[index];
            let slots = match &table.positions {
                Some(_) => table.physical + positions.saturating_sub(table.logical),
                None => positions,
            };
            assert_eq!(self.real.slots(seq.id, group.id, positions), Ok(slots));
            let wanted = if group.is_scratch() { more.max(table.physical) } else { slots };
            if which(index, group) { wanted } else { 0 }
        };
        self.groups.iter().enumerate().map(slots).collect()
    }

    fn lacks(&self, s: usize, need: &[u32]) -> Vec<u32> {
        let tables = self.seqs[s].tables.iter().zip(need);
        tables.map(|(table, need)| need.div_ceil(SIZE).saturating_sub(table.ids.len() as u32)).collect()
    }

    fn reserve(&mut self, s: usize, need: &[u32]) -> bool {
        let want = self.lacks(s, need);
        let mut missing = vec![0; need.len()];
        self.real.missing(self.seqs[s].id, need, &mut missing).unwrap();
        assert_eq!(missing, want);
        let room = self.real.has_room(&want);
        if self.lagging().is_none_or(|group| want[group] == 0) {
            assert_eq!(room, self.naive_room(&want), "room for {want:?}");
        }
        let any = want.iter().any(|&want| want > 0);
        let got = self.real.reserve(self.seqs[s].id, need);
        let keeps = self.lagging().is_some_and(|group| need[group] > 0 && want[group] == 0);
        let refused = keeps && room && got == Ok(None);
        let room = room && !refused;
        assert_eq!(got, Ok((room || !any).then_some(())));
        if let Some(twin) = &mut self.twin {
            let got = twin.reserve(self.seqs[s].twin, &need[..need.len() - 1]);
            assert_eq!(got, Ok((room || !any).then_some(())), "a lagging group made a difference");
        }
        if room {
            self.grown(s, need);
        }
        room
    }

    fn grown(&mut self, s: usize, need: &[u32]) {
        self.drops();
        for (group, need) in need.iter().enumerate() {
            let entries = (*need).div_ceil(SIZE).max(self.seqs[s].tables[group].ids.len() as u32);
            self.read(s, group, entries as usize, None);
        }
    }

    /// Lagging groups may have lost what they held.
    fn drops(&mut self) {
        let Some(group) = self.lagging() else {
            assert_eq!(self.real.num_dropped(), 0);
            return;
        };
        for seq in self.seqs.iter_mut().filter(|seq| seq.alive) {
            if self.real.block_table(seq.id, GroupId(group as u8)).is_empty() {
                seq.tables[group] = Kept::default();
            }
        }
    }

    /// Reads a table, which must have so many entries; those that were there are as before, but for one.
    fn read(&mut self, s: usize, group: usize, entries: usize, changed: Option<usize>) {
        let ids = self.real.block_table(self.seqs[s].id, GroupId(group as u8));
        let table = &mut self.seqs[s].tables[group];
        let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
        assert_eq!(ids.len(), entries, "entries of group {group}");
        let window = self.groups[group].window;
        for (index, &id) in ids.iter().enumerate() {
            let last_key = (index as u32 + 1) * SIZE - 1;
            let behind =
                window.is_some_and(|window| i64::from(last_key) <= i64::from(table.base) - i64::from(window));
            assert_eq!(id == FREED, behind, "entry {index} of group {group}, window {window:?}");
            if let Some(&before) = table.ids.get(index).filter(|_| !behind && changed != Some(index)) {
                assert_eq!(id, before);
            }
        }
        table.ids = ids;
    }

    fn commit(&mut self, s: usize, group: usize, percent: u32) {
        let upto = self.seqs[s].tokens.len() as u32 * percent / 100;
        let (id, kv) = (self.seqs[s].id, GroupId(group as u8));
        let table = self.seqs[s].tables[group].clone();
        let reserved = table.ids.len() as u32 * SIZE;
        if self.prunes[group] && percent.is_multiple_of(2) {
            let mut kept = table.positions.clone().unwrap_or_else(|| (0..table.physical).collect());
            kept.extend((table.logical..upto).filter(|position| !position.is_multiple_of(group as u32 + 2)));
            let got = self.real.commit_kept(id, kv, &kept, upto);
            if let Some(twin) = &mut self.twin {
                assert_eq!(twin.commit_kept(self.seqs[s].twin, kv, &kept, upto), got);
            }
            if kept.len() as u32 > reserved {
                assert!(matches!(got, Err(Error::CommitBeyondReserved { .. })));
            } else if upto < table.logical {
                assert!(matches!(got, Err(Error::CommitBackwards { .. })));
            } else {
                assert_eq!(got, Ok(()));
                let table = &mut self.seqs[s].tables[group];
                let slots = kept.len() as u32;
                (table.physical, table.logical, table.positions) = (slots, upto, Some(kept));
                table.ids.truncate(slots.div_ceil(SIZE) as usize);
                let entries = table.ids.len();
                self.read(s, group, entries, None);
            }
            return;
        }
        let got = self.real.commit(id, kv, &self.seqs[s].tokens, upto);
        if let Some(twin) = self.twin.as_mut().filter(|_| !self.groups[group].lags) {
            assert_eq!(twin.commit(self.seqs[s].twin, kv, &self.seqs[s].tokens, upto), got);
        }
        let pruned = table.positions.is_some();
        let slots = if pruned { table.physical + upto.saturating_sub(table.logical) } else { upto };
        if slots > reserved {
            assert!(matches!(got, Err(Error::CommitBeyondReserved { .. })));
        } else if upto < table.logical {
            assert!(matches!(got, Err(Error::CommitBackwards { .. })));
        } else {
            let sealed = table.physical / SIZE..slots / SIZE;
            assert_eq!(got, Ok(sealed.clone()));
            self.published_by(s, group, sealed, pruned);
            let now = &mut self.seqs[s].tables[group];
            if let Some(positions) = &mut now.positions {
                positions.extend(table.logical..upto);
            }
            (now.physical, now.logical, now.base) = (slots, upto, slots.max(now.base));
            self.read(s, group, table.ids.len(), None);
        }
    }

    /// The journal says that these blocks, and no others, were published.
    fn published_by(&mut self, s: usize, group: usize, sealed: std::ops::Range<u32>, pruned: bool) {
        self.replay();
        let seq = &self.seqs[s];
        for index in sealed {
            let key = (group, seq.tables[group].ids[index as usize]);
            let stored = self.published.get(&key);
            if pruned || self.groups[group].is_scratch() {
                assert_eq!(stored, None);
                continue;
            }
            let (_, salt, tokens) = stored.unwrap();
            assert_eq!((salt, &tokens[..]), (&seq.salt, &seq.tokens[..(index as usize + 1) * SIZE as usize]));
        }
    }

    /// Brings `published` up to date, by the journal alone.
    fn replay(&mut self) {
        let mut journal = std::mem::take(&mut self.journal);
        self.real.drain_journal(&mut journal);
        for event in &journal.events {
            let key = (usize::from(event.group.0), event.block.0);
            match event.kind {
                KvEventKind::Cleared => {
                    self.published.clear();
                    self.order.clear();
                }
                KvEventKind::Removed => {
                    assert_eq!(self.published.remove(&key).unwrap().0, event.hash);
                    self.order.retain(|other| *other != key);
                }
                KvEventKind::Stored => {
                    let tokens = &journal.tokens[event.tokens.start as usize..event.tokens.end as usize];
                    let (salt, whole) = self.who_has(event.parent, tokens, event.hash);
                    let before = self.published.insert(key, (event.hash, salt, whole));
                    assert_eq!(before, None, "published twice");
                    self.order.push(key);
                }
            }
        }
        self.journal = journal;
    }

    /// The salt and tokens that `hash` is the name of, from a sequence that has them.
    fn who_has(&self, parent: Option<BlockHash>, block: &[u32], hash: BlockHash) -> (Salt, Vec<u32>) {
        for seq in self.seqs.iter().filter(|seq| seq.alive) {
            let mut before = None;
            for (index, tokens) in seq.tokens.chunks_exact(SIZE as usize).enumerate() {
                let name = BlockHash::of(&before.unwrap_or(BlockHash::ROOT), tokens, &seq.salt);
                if name == hash {
                    assert_eq!((parent, block), (before, tokens));
                    return (seq.salt, seq.tokens[..(index + 1) * SIZE as usize].to_vec());
                }
                before = Some(name);
            }
        }
        unreachable!("a block was published whose tokens nobody has");
    }

    fn find(&self, s: usize, group: usize, index: u32) -> Option<u32> {
        let seq = &self.seqs[s];
        let prefix = seq.tokens.get(..(index as usize + 1) * SIZE as usize)?;
        let found = self.order.iter().find(|key| {
            let (_, salt, tokens) = &self.published[*key];
            key.0 == group && *salt == seq.salt && tokens == prefix
        });
        found.map(|key| key.1)
    }

    /// The blocks that a query at position `len` sees of its first `len` positions.
    fn seen(&self, group: usize, len: u32) -> std::ops::Range<u32> {
        let sees = |key: u32| {
            self.groups[group].window.is_none_or(|w| i64::from(key) > i64::from(len) - i64::from(w))
        };
        let first = (0..len).find(|&key| sees(key)).map_or(len / SIZE, |key| key / SIZE);
        first..len / SIZE
    }

    fn has(&self, s: usize, group: usize, len: u32) -> bool {
        self.seen(group, len).all(|index| self.find(s, group, index).is_some())
    }

    fn naive_hit(&self, s: usize, limit: u32) -> PrefixHit {
        let lens = || (0..=limit / SIZE).rev().map(|blocks| blocks * SIZE);
        let counted = |group: &usize| !self.groups[*group].lags && !self.groups[*group].is_scratch();
        let counted: Vec<usize> = (0..self.groups.len()).filter(counted).collect();
        let all = |len: &u32| counted.iter().all(|&group| self.has(s, group, *len));
        let mut hit = PrefixHit { tokens: lens().find(all).unwrap(), ..PrefixHit::default() };
        for &group in &counted {
            let own = lens().find(|&len| self.has(s, group, len)).unwrap();
            hit.lens[group] = if self.groups[group].window.is_some() { hit.tokens } else { own };
            for index in self.seen(group, hit.lens[group]) {
                let id = self.find(s, group, index).unwrap();
                hit.blocks += 1;
                hit.free_blocks += u32::from(!self.held().contains(&(group, id)));
            }
        }
        hit
    }

    fn take_hit(&mut self, s: usize, more: u32) {
        self.replay();
        let seq = self.seqs[s].clone();
        let limit = (seq.tokens.len() as u32).saturating_sub(1);
        let hit = self.real.lookup(seq.id, &seq.tokens, limit).unwrap();
        assert_eq!(hit, self.naive_hit(s, limit));
        if let Some(twin) = &mut self.twin {
            assert_eq!(twin.lookup(seq.twin, &seq.tokens, limit), Ok(hit));
        }
        let need = self.need(s, more, |_, group| !group.lags);
        let fits = self.real.fits(seq.id, &seq.tokens, &hit, &need);
        let got = self.real.take_hit(seq.id, &seq.tokens, &hit);
        let only_lagging =
            seq.tables.iter().zip(&self.groups).all(|(table, group)| group.lags || table.ids.is_empty());
        let differs = only_lagging && seq.tables.iter().any(|table| !table.ids.is_empty());
        if let Some(twin) = self.twin.as_mut().filter(|_| !differs) {
            let fits_too = twin.fits(seq.twin, &seq.tokens, &hit, &need[..need.len() - 1]);
            assert_eq!(fits.is_ok(), fits_too.is_ok());
            if fits.is_ok() {
                assert_eq!(fits, fits_too, "a lagging group made a difference");
            }
            assert_eq!(twin.take_hit(seq.twin, &seq.tokens, &hit).is_ok(), got.is_ok());
        }
        if seq.tables.iter().any(|table| !table.ids.is_empty()) {
            assert!(matches!(fits, Err(Error::NotEmpty { .. })));
            assert!(matches!(got, Err(Error::NotEmpty { .. })));
            return;
        }
        assert_eq!(got, Ok(()));
        for group in 0..self.groups.len() {
            self.took(s, group, hit.lens[group]);
        }
        assert_eq!(fits, Ok(self.reserve(s, &need) || self.lacks(s, &need).iter().all(|&n| n == 0)));
    }

    /// A group got the blocks of a hit of `len` tokens.
    fn took(&mut self, s: usize, group: usize, len: u32) {
        let expected: Vec<u32> = (0..len / SIZE)
            .map(|index| {
                let seen = self.seen(group, len).contains(&index);
                if seen { self.find(s, group, index).unwrap() } else { FREED }
            })
            .collect();
        let table = &mut self.seqs[s].tables[group];
        *table = Kept { ids: expected, physical: len, logical: len, base: len, ..Kept::default() };
        self.read(s, group, (len / SIZE) as usize, None);
    }

    fn take_lagging_hit(&mut self, s: usize) {
        let Some(group) = self.lagging() else {
            return;
        };
        self.replay();
        let (seq, kv) = (self.seqs[s].clone(), GroupId(group as u8));
        let limit = seq.tokens.len() as u32;
        let got = self.real.take_group_hit(seq.id, kv, &seq.tokens, limit);
        if !seq.tables[group].ids.is_empty() {
            assert!(matches!(got, Err(Error::NotEmpty { .. })));
            return;
        }
        let len = (0..=limit / SIZE).rev().map(|n| n * SIZE).find(|&len| self.has(s, group, len)).unwrap();
        assert_eq!(got, Ok(len));
        self.took(s, group, len);
    }

    fn fork(&mut self, p: usize, c: usize, percent: u32) {
        let (parent, child) = (self.seqs[p].clone(), self.seqs[c].clone());
        let len = parent.tokens.len() as u32 * percent / 100;
        let mut copies = vec![];
        let got = self.real.fork(parent.id, child.id, len, &mut copies);
        if let Some(twin) = &mut self.twin {
            let mut others = vec![];
            let same = twin.fork(parent.twin, child.twin, len, &mut others);
            let lagging_blocks = child.tables.last().is_some_and(|table| !table.ids.is_empty());
            if !lagging_blocks {
                assert_eq!(same.is_ok(), got.is_ok());
                assert_eq!(same.ok(), got.clone().ok(), "a lagging group made a difference");
                assert_eq!(others.len(), copies.len());
            } else if same.is_ok() {
                twin.clear(child.twin).unwrap();
            }
        }
        let filled = child.tables.iter().any(|table| !table.ids.is_empty());
        let mut possible = parent.alive && child.alive && p != c && parent.salt == child.salt && !filled;
        let mut slots = vec![0; self.groups.len()];
        for (index, group) in self.groups.iter().enumerate() {
            let table = &parent.tables[index];
            let seen = |len: u32| {
                let first = self.seen(index, len).start as usize;
                first * SIZE as usize >= len as usize || table.ids.get(first).is_none_or(|&id| id != FREED)
            };
            if group.is_scratch() {
                continue;
            }
            if table.positions.is_some() {
                possible &= table.logical <= len;
                slots[index] = table.physical;
            } else if group.lags {
                let whole = len.min(table.physical) / SIZE * SIZE;
                slots[index] = if seen(whole) { whole } else { 0 };
            } else {
                possible &= len <= table.physical && seen(len);
                slots[index] = len;
            }
        }
        if !possible {
            assert!(got.is_err(), "{got:?}");
            assert_eq!(copies, []);
            return;
        }
        let fresh: Vec<u32> = slots.iter().map(|n| u32::from(!n.is_multiple_of(SIZE))).collect();
        let room = self.naive_room(&fresh);
        assert_eq!(got, Ok(room.then_some(())));
        if !room {
            return;
        }
        self.drops();
        let mut copies = copies.into_iter();
        for (index, &slots) in slots.iter().enumerate() {
            let source = &parent.tables[index];
            if self.seqs[p].tables[index].ids.is_empty() && self.groups[index].lags {
                // What the parent lost for the fork's fresh blocks cannot be shared.
                self.seqs[c].tables[index] = Kept::default();
                self.read(c, index, 0, None);
                continue;
            }
            let full = (slots / SIZE) as usize;
            let mut table = Kept { ids: source.ids[..full].to_vec(), physical: slots, ..source.clone() };
            if source.positions.is_none() || slots == 0 {
                (table.logical, table.positions) = (slots, None);
            }
            if slots == 0 {
                table.base = 0;
            }
            let entries = slots.div_ceil(SIZE) as usize;
            if entries > full {
                let copy = copies.next().unwrap();
                let ids = (copy.group, copy.src.0);
                assert_eq!(ids, (GroupId(index as u8), source.ids[full]));
                table.ids.push(copy.dst.0);
            }
            self.seqs[c].tables[index] = table;
            self.read(c, index, entries, None);
        }
        assert_eq!(copies.next(), None);
        self.seqs[c].tokens = parent.tokens[..len as usize].to_vec();
    }

    fn roll_back(&mut self, s: usize, percent: u32) {
        let len = self.seqs[s].tokens.len() as u32 * percent / 100;
        for index in 0..self.groups.len() {
            let (seq, kv) = (self.seqs[s].clone(), GroupId(index as u8));
            let table = &seq.tables[index];
            let keep = (len.div_ceil(SIZE) as usize).min(table.ids.len());
            let mut copies = vec![];
            let got = self.real.truncate(seq.id, kv, len, &mut copies);
            if let Some(twin) = self.twin.as_mut().filter(|_| !self.groups[index].lags) {
                let mut others = vec![];
                let same = twin.truncate(seq.twin, kv, len, &mut others);
                assert_eq!((same.is_err(), others.len()), (got.is_err(), copies.len()));
                assert_eq!(same.ok(), got.clone().ok(), "a lagging group made a difference");
            }
            if table.positions.is_some() {
                assert!(matches!(got, Err(Error::Pruned { .. })));
                return;
            }
            // Keys that are seen from there, and slots beside them that are to be written.
            let first = self.seen(index, len).start as usize;
            let lost = first < len.div_ceil(SIZE) as usize && table.ids.get(first) == Some(&FREED);
            if lost {
                assert!(matches!(got, Err(Error::BehindWindow { .. })), "{got:?}");
                return;
            }
            if got == Ok(None) {
                let mut one = vec![0; self.groups.len()];
                one[index] = 1;
                assert!(!self.naive_room(&one));
                return;
            }
            assert_eq!(got, Ok(Some(())));
            self.drops();
            let table = &mut self.seqs[s].tables[index];
            table.ids.truncate(keep);
            table.physical = table.physical.min(len);
            table.logical = table.physical;
            if keep == 0 {
                table.base = 0;
            }
            assert!(copies.len() <= 1);
            self.read(s, index, keep, copies.first().map(|_| keep - 1));
            if let Some(copy) = copies.first() {
                assert_eq!(copy.dst.0, self.seqs[s].tables[index].ids[keep - 1]);
            }
        }
        self.seqs[s].tokens.truncate(len as usize);
    }

    /// The blocks that somebody holds.
    fn held(&self) -> BTreeSet<(usize, u32)> {
        let tables = self.seqs.iter().flat_map(|seq| seq.tables.iter().enumerate());
        let ids = tables.flat_map(|(group, table)| table.ids.iter().map(move |&id| (group, id)));
        ids.filter(|(_, id)| *id != FREED).collect()
    }

    /// By page: its owner, held blocks and cached ones.
    fn pages(&mut self) -> BTreeMap<u32, (usize, u32, u32)> {
        self.replay();
        let held = self.held();
        let mut pages = BTreeMap::new();
        let cached = self.published.keys().filter(|key| !held.contains(key));
        for (is_held, &(group, id)) in
            held.iter().map(|key| (true, key)).chain(cached.map(|key| (false, key)))
        {
            let page = id / self.real.arena().groups()[group].per_page;
            let (owner, held, cached) = pages.entry(page).or_insert((group, 0, 0));
            assert_eq!(*owner, group, "page {page} belongs to two groups");
            *held += u32::from(is_held);
            *cached += u32::from(!is_held);
        }
        pages
    }

    /// Whether so many more blocks can be had, by counting pages.
    fn naive_room(&mut self, want: &[u32]) -> bool {
        let pages = self.pages();
        let arena = self.real.arena().clone();
        let (mut owned, mut reclaimable, mut need, mut lagging_need) = (0, 0, 0, 0);
        for (index, group) in self.groups.iter().enumerate() {
            let per_page = arena.groups()[index].per_page;
            let own: Vec<_> = pages.values().filter(|page| page.0 == index).collect();
            let free_in = |held: bool| -> u32 {
                own.iter().filter(|page| !held || page.1 > 0).map(|page| per_page - page.1).sum()
            };
            let more = |free: u32| want[index].saturating_sub(free).div_ceil(per_page);
            if group.lags {
                lagging_need += more(free_in(false));
                continue;
            }
            owned += own.len() as u32;
            reclaimable += own.iter().filter(|page| page.1 == 0).count() as u32;
            need += more(free_in(true));
        }
        let empty = arena.num_pages() - pages.len() as u32;
        need <= arena.primary_pages() - owned + reclaimable && lagging_need <= empty
    }

    fn check(&mut self) {
        self.drops();
        let pages = self.pages();
        let held = self.held();
        let arena = self.real.arena().clone();
        // No two blocks overlap, and all lie in the arena.
        let range = |&(group, id): &(usize, u32)| {
            let cut = &arena.groups()[group];
            let start = id as usize * cut.stride;
            (start, start + cut.block_bytes)
        };
        let mut ranges: Vec<(usize, usize)> = held.iter().map(range).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "blocks overlap: {ranges:?}");
        assert!(ranges.last().is_none_or(|last| last.1 <= arena.bytes()));
        // Bytes are conserved.
        let stats = self.real.stats();
        let stride = |group: usize| arena.groups()[group].stride as u64;
        let used: u64 = held.iter().map(|key| stride(key.0)).sum();
        let cached = self.published.keys().filter(|key| !held.contains(key));
        let cached: u64 = cached.map(|key| stride(key.0)).sum();
        let page_bytes = arena.page_bytes() as u64;
        let loose = pages.values().filter(|page| page.1 > 0);
        let loose: u64 = loose.map(|page| page_bytes - u64::from(page.1) * stride(page.0)).sum();
        assert_eq!(
            (
                stats.bytes_used,
                stats.bytes_cached,
                stats.bytes_fragmented,
                stats.bytes_used + stats.bytes_free
            ),
            (used, cached, loose, arena.bytes() as u64)
        );
        assert_eq!(stats.used + stats.free, stats.num_blocks);
        let primary = pages.values().filter(|page| !self.groups[page.0].lags).count();
        assert!(primary as u32 <= arena.primary_pages());
        // Every block is held as often as tables say, and published if the journal says so.
        for (group, cut) in arena.groups().iter().enumerate() {
            let kv = GroupId(group as u8);
            for id in 0..cut.num_blocks.min(200) {
                let tables = self.seqs.iter().map(|seq| &seq.tables[group]);
                let holders = tables.filter(|table| table.ids.contains(&id)).count();
                assert_eq!(self.real.pool().holders(kv, BlockId(id)) as usize, holders);
                let published = self.published.contains_key(&(group, id));
                assert_eq!(self.real.pool().is_published(kv, BlockId(id)), published);
            }
            let used = held.iter().filter(|key| key.0 == group).count();
            assert_eq!(self.real.group_stats(kv).used as usize, used);
            if let Some(twin) = self.twin.as_ref().filter(|_| !self.groups[group].lags) {
                assert_eq!(
                    twin.group_stats(kv),
                    self.real.group_stats(kv),
                    "a lagging group made a difference"
                );
            }
        }
        for seq in self.seqs.iter().filter(|seq| seq.alive) {
            for (group, table) in seq.tables.iter().enumerate() {
                let kv = GroupId(group as u8);
                let lengths = self.real.lengths(seq.id, kv).unwrap();
                assert_eq!((lengths.physical, lengths.logical), (table.physical, table.logical));
                let index = table.positions.as_deref().map_or(KvIndex::Position, KvIndex::Explicit);
                assert_eq!(self.real.index(seq.id, kv), index);
            }
        }
    }

    /// Everything was freed: each group alone can have all that it may ever have.
    fn check_whole(&mut self) {
        assert_eq!(self.real.stats().bytes_used, 0);
        let arena = self.real.arena().clone();
        for index in 0..self.groups.len() {
            let (lags, kv) = (self.groups[index].lags, GroupId(index as u8));
            if lags {
                self.real.clear_cache();
            }
            let pages = if lags { arena.num_pages() } else { arena.primary_pages() };
            let all = pages * arena.groups()[index].per_page;
            assert_eq!(self.real.room(kv), all);
            let sequence = self.real.open(Salt::NONE);
            assert_eq!(self.real.reserve_group(sequence, kv, all * SIZE + 1), Ok(None));
            assert_eq!(self.real.reserve_group(sequence, kv, all * SIZE), Ok(Some(())));
            self.real.free(sequence).unwrap();
        }
    }
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
