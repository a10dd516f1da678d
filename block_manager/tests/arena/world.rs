//! The operations on one sequence.
use std::collections::BTreeMap;

use pagedraft_block_manager::{
    BlockManager, BlockSize, Error, GroupId, KvGroup, KvJournal, KvPart, LayerSet, PartKind, Salt, SequenceId,
};

use crate::{Draw, FREED, Kept, Op, SIZE, Seq, World};

fn group(id: usize, draw: &Draw) -> KvGroup {
    KvGroup { id: GroupId(id as u8), window: draw.window, ..KvGroup::dense(1, draw.bytes) }
}

impl World {
    pub(crate) fn new(num_blocks: u32, draws: &[Draw], scratch: bool, lagging: bool) -> Self {
        let mut groups: Vec<KvGroup> = draws.iter().enumerate().map(|(id, draw)| group(id, draw)).collect();
        let mut prunes: Vec<bool> = draws.iter().map(|draw| draw.prunes).collect();
        if scratch && groups.len() > 1 {
            let part = KvPart {
                kind: PartKind::Residual,
                layers: LayerSet::range(0..1),
                bytes_per_token: draws[1].bytes,
                tiered: false,
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

    pub(crate) fn lagging(&self) -> Option<usize> {
        self.groups.iter().position(|group| group.lags)
    }

    pub(crate) fn apply(&mut self, op: &Op) {
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

    pub(crate) fn apply_to(&mut self, s: usize, op: &Op) {
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

    pub(crate) fn open(&mut self, salted: bool) {
        let salt = if salted { Salt::of(&[("tenant", "b")]) } else { Salt::NONE };
        let id = self.real.open(salt);
        let twin = self.twin.as_mut().map_or(id, |twin| twin.open(salt));
        let tables = vec![Kept::default(); self.groups.len()];
        self.seqs.push(Seq { id, twin, alive: true, salt, tokens: vec![], tables });
    }

    /// Slots by group for the known tokens and `more`, in the groups asked for.
    pub(crate) fn need(&self, s: usize, more: u32, which: impl Fn(usize, &KvGroup) -> bool) -> Vec<u32> {
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

    pub(crate) fn lacks(&self, s: usize, need: &[u32]) -> Vec<u32> {
        let tables = self.seqs[s].tables.iter().zip(need);
        tables.map(|(table, need)| need.div_ceil(SIZE).saturating_sub(table.ids.len() as u32)).collect()
    }

    pub(crate) fn reserve(&mut self, s: usize, need: &[u32]) -> bool {
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

    pub(crate) fn grown(&mut self, s: usize, need: &[u32]) {
        self.drops();
        for (group, need) in need.iter().enumerate() {
            let entries = (*need).div_ceil(SIZE).max(self.seqs[s].tables[group].ids.len() as u32);
            self.read(s, group, entries as usize, None);
        }
    }

    /// Lagging groups may have lost what they held.
    pub(crate) fn drops(&mut self) {
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
    pub(crate) fn read(&mut self, s: usize, group: usize, entries: usize, changed: Option<usize>) {
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

    pub(crate) fn commit(&mut self, s: usize, group: usize, percent: u32) {
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
}
