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

/// What the running requests that the step has yet to visit need without drafts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behind {
    pub(crate) rows: u32,
    /// The number of KV blocks that they lack for their next rows.
    pub(crate) blocks: u32,
}

/// The running requests in the order in which a step visits them.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    /// Each request with the number of KV blocks that it lacks.
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

    /// Counts the KV blocks that each request lacks for its next row.
    pub(crate) fn count(&mut self, lacks: impl Fn(RequestKey) -> u32) {
        for (key, blocks) in &mut self.order {
            *blocks = lacks(*key);
            self.behind.blocks += *blocks;
        }
    }

    /// The next request to visit. From now on it no longer counts as behind.
    pub(crate) fn next(&mut self) -> Option<RequestKey> {
        let (key, blocks) = self.order.get_mut(self.at)?;
        self.at += 1;
        // A request that left the batch was already subtracted in `leave`.
        if *blocks != GONE {
            self.behind.rows -= 1;
            self.behind.blocks -= *blocks;
        }
        Some(*key)
    }

    /// A request was preempted before the step visited it.
    pub(crate) fn leave(&mut self, key: RequestKey) {
        if let Some((_, blocks)) = self.order[self.at..].iter_mut().find(|(other, _)| *other == key) {
            self.behind.rows -= 1;
            self.behind.blocks -= *blocks;
            *blocks = GONE;
        }
    }

    /// What the requests need that are yet to be visited.
    pub(crate) fn behind(&self) -> Behind {
        self.behind
    }
}

/// Marks a request that is no longer running, in place of the number of blocks that it lacks.
const GONE: u32 = u32::MAX;

/// The waiting requests. The first of them is admitted next.
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

    pub(crate) fn remove(&mut self, key: RequestKey) {
        self.keys.retain(|&other| other != key);
    }
}
