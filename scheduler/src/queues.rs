use std::collections::VecDeque;

use crate::RequestKey;

/// Admitted requests, in the order of admission.
#[derive(Debug, Default)]
pub(crate) struct Running {
    keys: Vec<RequestKey>,
    /// The first one that the budget of the last step did not reach: the next step begins with it.
    left_out: Option<RequestKey>,
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

    pub(crate) fn set_left_out(&mut self, key: RequestKey) {
        self.left_out = Some(key);
    }

    /// Writes the order in which this step visits them: admission order, turned so that it begins with the one
    /// that was left out.
    pub(crate) fn visit_order(&mut self, order: &mut Vec<RequestKey>) {
        let first = self.left_out.take();
        let first = first.and_then(|first| self.keys.iter().position(|&key| key == first));
        let (front, back) = self.keys.split_at(first.unwrap_or(0));
        order.clear();
        order.extend_from_slice(back);
        order.extend_from_slice(front);
    }

    pub(crate) fn remove(&mut self, key: RequestKey) {
        let Some(at) = self.keys.iter().rposition(|&other| other == key) else {
            return;
        };
        self.keys.remove(at);
        if self.left_out == Some(key) {
            self.left_out = self.keys.get(at).or(self.keys.first()).copied();
        }
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&RequestKey) -> bool) {
        self.keys.retain(keep);
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

    /// Puts `key` behind all that are `better` than it; the queue is ordered that way.
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
