use std::collections::VecDeque;

use crate::RequestKey;

/// Admitted requests, in the order of admission.
#[derive(Debug, Default)]
pub(crate) struct Running {
    keys: Vec<RequestKey>,
}

impl Running {
    pub(crate) fn keys(&self) -> &[RequestKey] {
        &self.keys
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn reserve(&mut self, len: usize) {
        self.keys.reserve(len.saturating_sub(self.keys.len()));
    }

    pub(crate) fn push(&mut self, key: RequestKey) {
        self.keys.push(key);
    }

    pub(crate) fn remove(&mut self, key: RequestKey) {
        if let Some(at) = self.keys.iter().rposition(|&other| other == key) {
            self.keys.remove(at);
        }
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&RequestKey) -> bool) {
        self.keys.retain(keep);
    }
}

/// The running requests in the order in which a step visits them, and what those need, without drafts, that are yet to
/// come.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    order: Vec<Place>,
    at: usize,
    /// How many running requests are yet to come.
    behind_rows: u32,
    groups: usize,
    /// Blocks that each request lacks for its next row, `[requests, groups]`; empty where nobody counted.
    lacks: Vec<u32>,
    /// Their sums over the requests that are yet to come, by group.
    behind_blocks: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: RequestKey,
    /// It was preempted before its turn, and what it needs was subtracted then.
    gone: bool,
    /// Whether it may lack blocks for its next row.
    lacks: bool,
}

impl Visit {
    pub(crate) fn reserve(&mut self, len: usize, groups: usize) {
        self.order.reserve(len.saturating_sub(self.order.len()));
        self.lacks.reserve((len * groups).saturating_sub(self.lacks.len()));
    }

    pub(crate) fn begin(&mut self, running: &[RequestKey], groups: usize) {
        self.order.clear();
        self.order.extend(running.iter().map(|&key| Place { key, gone: false, lacks: false }));
        self.at = 0;
        self.behind_rows = running.len() as u32;
        self.groups = groups;
        self.lacks.clear();
        self.behind_blocks.clear();
        self.behind_blocks.resize(groups, 0);
    }

    /// Puts those first who are `to_be_first`; within both halves the order stays.
    pub(crate) fn first(&mut self, to_be_first: impl Fn(RequestKey) -> bool) {
        self.order.sort_by_key(|place| !to_be_first(place.key));
    }

    /// Counts the blocks by group that each of them lacks, of those of which `may_lack` says that they may lack some:
    /// `lacks` adds those of one request.
    pub(crate) fn count<E>(
        &mut self,
        may_lack: impl Fn(RequestKey) -> bool,
        lacks: impl Fn(RequestKey, &mut [u32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.lacks.resize(self.order.len() * self.groups, 0);
        for (at, place) in self.order.iter_mut().enumerate() {
            place.lacks = may_lack(place.key);
            if !place.lacks {
                continue;
            }
            let blocks = &mut self.lacks[at * self.groups..(at + 1) * self.groups];
            lacks(place.key, blocks)?;
            for (sum, &blocks) in self.behind_blocks.iter_mut().zip(&*blocks) {
                *sum += blocks;
            }
        }
        Ok(())
    }

    /// The next request to visit. From now on it no longer counts as behind.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<RequestKey> {
        let at = self.at;
        let place = *self.order.get(at)?;
        self.at += 1;
        if !place.gone {
            self.subtract(at, place.lacks);
        }
        Some(place.key)
    }

    /// A request was preempted before the step visited it.
    pub(crate) fn leave(&mut self, key: RequestKey) {
        let behind = self.order[self.at..].iter().position(|place| place.key == key && !place.gone);
        if let Some(behind) = behind {
            let at = self.at + behind;
            self.order[at].gone = true;
            self.subtract(at, self.order[at].lacks);
        }
    }

    #[inline]
    fn subtract(&mut self, at: usize, lacks: bool) {
        self.behind_rows -= 1;
        if !lacks {
            return;
        }
        let lacks = self.lacks.get(at * self.groups..(at + 1) * self.groups).unwrap_or_default();
        for (sum, blocks) in self.behind_blocks.iter_mut().zip(lacks) {
            *sum -= blocks;
        }
    }

    /// How many running requests are yet to come.
    #[inline]
    pub(crate) fn behind_rows(&self) -> u32 {
        self.behind_rows
    }

    /// The blocks by group that they lack.
    #[inline]
    pub(crate) fn behind_blocks(&self) -> &[u32] {
        &self.behind_blocks
    }
}

/// Requests that wait, the next to be admitted first.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    keys: VecDeque<RequestKey>,
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn get(&self, at: usize) -> Option<RequestKey> {
        self.keys.get(at).copied()
    }

    pub(crate) fn push_back(&mut self, key: RequestKey) {
        self.keys.push_back(key);
    }

    pub(crate) fn push_front(&mut self, key: RequestKey) {
        self.keys.push_front(key);
    }

    /// Puts `key` behind all requests that are `better` than it. The queue must be in that order already.
    pub(crate) fn insert(&mut self, key: RequestKey, better: impl Fn(RequestKey) -> bool) {
        let at = self.keys.partition_point(|&other| better(other));
        self.keys.insert(at, key);
    }

    pub(crate) fn remove_at(&mut self, at: usize) {
        self.keys.remove(at);
    }

    /// Whoever ends all that wait goes from the last one on, which takes as many steps as there are requests: the search begins at
    /// the end.
    pub(crate) fn remove(&mut self, key: RequestKey) {
        if let Some(at) = self.keys.iter().rposition(|&other| other == key) {
            self.keys.remove(at);
        }
    }
}
