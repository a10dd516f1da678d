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

/// What the running requests that a step has yet to visit need without drafts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behind {
    pub(crate) rows: u32,
    /// Blocks that they lack for their next rows.
    pub(crate) blocks: u32,
}

/// The running requests in the order in which a step visits them.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    /// Each with the blocks that it lacks.
    order: Vec<(RequestKey, u32)>,
    at: usize,
    behind: Behind,
}

impl Visit {
    pub(crate) fn reserve(&mut self, len: usize) {
        self.order.reserve(len.saturating_sub(self.order.len()));
    }

    pub(crate) fn begin(&mut self, running: &[RequestKey]) {
        self.order.clear();
        self.order.extend(running.iter().map(|&key| (key, 0)));
        self.at = 0;
        self.behind = Behind { rows: running.len() as u32, blocks: 0 };
    }

    /// Counts the blocks that each of them lacks.
    pub(crate) fn count(&mut self, lacks: impl Fn(RequestKey) -> u32) {
        for (key, blocks) in &mut self.order {
            *blocks = lacks(*key);
            self.behind.blocks += *blocks;
        }
    }

    /// The next one, which is no longer behind.
    pub(crate) fn next(&mut self) -> Option<RequestKey> {
        let (key, blocks) = self.order.get_mut(self.at)?;
        self.at += 1;
        // Who left was subtracted then.
        if *blocks != GONE {
            self.behind.rows -= 1;
            self.behind.blocks -= *blocks;
        }
        Some(*key)
    }

    /// One of them was preempted before its turn.
    pub(crate) fn leave(&mut self, key: RequestKey) {
        if let Some((_, blocks)) = self.order[self.at..].iter_mut().find(|(other, _)| *other == key) {
            self.behind.rows -= 1;
            self.behind.blocks -= *blocks;
            *blocks = GONE;
        }
    }

    /// What those need that are yet to come.
    pub(crate) fn behind(&self) -> Behind {
        self.behind
    }
}

/// Marks who is no longer running.
const GONE: u32 = u32::MAX;

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

    /// Puts `key` behind all that are `better` than it; the queue is ordered that way.
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
