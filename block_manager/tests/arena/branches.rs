//! Forks, and going back.
use pagedraft_block_manager::{Error, GroupId};

use crate::{FREED, Kept, SIZE, World};

impl World {
    pub(crate) fn fork(&mut self, p: usize, c: usize, percent: u32) {
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
                // A group that has dropped all its tokens is still a pruned one, as it is where the fork was refused.
                for (index, table) in
                    child.tables.iter().enumerate().filter(|(index, _)| !self.groups[*index].lags)
                {
                    if let Some(kept) = &table.positions {
                        twin.commit_kept(child.twin, GroupId(index as u8), kept, table.logical).unwrap();
                    }
                }
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

    pub(crate) fn roll_back(&mut self, s: usize, percent: u32) {
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
}
