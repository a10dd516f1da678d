//! Prefix hits, and the obvious search for them.
use pagedraft_block_manager::{Error, GroupId, PrefixHit};

use crate::{FREED, Kept, SIZE, World};

impl World {
    pub(crate) fn find(&self, s: usize, group: usize, index: u32) -> Option<u32> {
        let seq = &self.seqs[s];
        let prefix = seq.tokens.get(..(index as usize + 1) * SIZE as usize)?;
        let found = self.order.iter().find(|key| {
            let (_, salt, tokens) = &self.published[*key];
            key.0 == group && *salt == seq.salt && tokens == prefix
        });
        found.map(|key| key.1)
    }

    /// The blocks that a query at position `len` sees of its first `len` positions.
    pub(crate) fn seen(&self, group: usize, len: u32) -> std::ops::Range<u32> {
        let sees = |key: u32| {
            self.groups[group].window.is_none_or(|w| i64::from(key) > i64::from(len) - i64::from(w))
        };
        let first = (0..len).find(|&key| sees(key)).map_or(len / SIZE, |key| key / SIZE);
        first..len / SIZE
    }

    pub(crate) fn has(&self, s: usize, group: usize, len: u32) -> bool {
        self.seen(group, len).all(|index| self.find(s, group, index).is_some())
    }

    pub(crate) fn naive_hit(&self, s: usize, limit: u32) -> PrefixHit {
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
        if hit.blocks == 0 { PrefixHit::default() } else { hit }
    }

    pub(crate) fn take_hit(&mut self, s: usize, more: u32) {
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
    pub(crate) fn took(&mut self, s: usize, group: usize, len: u32) {
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

    pub(crate) fn take_lagging_hit(&mut self, s: usize) {
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
        let len = if self.seen(group, len).is_empty() { 0 } else { len };
        assert_eq!(got, Ok(len));
        self.took(s, group, len);
    }
}
