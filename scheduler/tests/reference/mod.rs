//! A slow, obvious scheduler: plain vectors, everything looked up by walking them.
//!
//! It knows the rules and no data structure. Requests are numbered by arrival and never forgotten. One KV group.

use pagedraft_block_manager::Salt;
use pagedraft_scheduler::{FinishReason, Kind, Policy, SchedulerConfig};

/// One request, for ever.
#[derive(Clone, Debug)]
pub struct Req {
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    pub max_tokens: usize,
    pub stop_ids: Vec<u32>,
    pub most_drafts: usize,
    pub priority: i32,
    pub salt: Salt,
    pub reads_cache: bool,
    pub fork_of: Option<usize>,
    pub computed: usize,
    pub blocks: Vec<u32>,
    pub preemptions: u32,
    pub cached: Option<usize>,
    pub admitted_in: Option<usize>,
    pub ended: Option<FinishReason>,
    /// Positions of a canvas, and of a block of it.
    pub canvas: Option<(usize, usize)>,
    /// Whether the next pass over the canvas is a full one.
    pub refresh: bool,
    /// Whether it had no row in the step before for want of budget.
    pub starved: bool,
}

/// What a row of a step gave: tokens, accepted drafts, whether a stop string was found, whether a canvas wants a full pass.
pub type Given = (Vec<u32>, usize, bool, bool);

/// A row of a plan, the request by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub request: usize,
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
    pub drafts: usize,
    pub samples: bool,
}

/// A plan, requests by number, copies as (src, dst).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub rows: Vec<Row>,
    pub copies: Vec<(u32, u32)>,
    pub preempted: Vec<usize>,
    pub finished: Vec<usize>,
}

pub struct Reference {
    config: SchedulerConfig,
    pub requests: Vec<Req>,
    running: Vec<usize>,
    waiting: Vec<usize>,
    free: Vec<u32>,
    /// Block, the tokens up to its end, salt: in the order of publication.
    published: Vec<(u32, Vec<u32>, Salt)>,
    flight: Vec<Row>,
    ended: Vec<usize>,
    steps: usize,
    /// Drafts that each request is given at most, beside the setting.
    pub wanted: Vec<usize>,
}

impl Reference {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            free: (0..config.num_blocks).collect(),
            config,
            requests: vec![],
            running: vec![],
            waiting: vec![],
            published: vec![],
            flight: vec![],
            ended: vec![],
            steps: 0,
            wanted: vec![],
        }
    }

    pub fn submit(&mut self, request: Req) {
        self.requests.push(request);
        self.line_up(self.requests.len() - 1, false);
    }

    /// (used, free, cached)
    pub fn pool(&self) -> (u32, u32, u32) {
        let cached = self.free.iter().filter(|&&b| self.is_published(b)).count();
        let free = self.free.len() as u32;
        (self.config.num_blocks - free, free, cached as u32)
    }

    pub fn abort(&mut self, r: usize) -> bool {
        if self.requests[r].ended.is_some() {
            return false;
        }
        self.requests[r].ended = Some(FinishReason::Abort);
        self.ended.push(r);
        self.waiting.retain(|&w| w != r);
        self.leave_running(r);
        if !self.flight.iter().any(|row| row.request == r) {
            self.give_back(r);
        }
        true
    }

    pub fn step(&mut self) -> Plan {
        let mut plan = Plan::default();
        for row in std::mem::take(&mut self.flight).into_iter().rev() {
            if self.requests[row.request].ended.is_some() {
                self.give_back(row.request);
            } else {
                self.preempt(row.request);
                plan.preempted.push(row.request);
            }
        }
        let given_up = plan.preempted.len();
        let mut budget = self.config.max_num_batched_tokens as usize;

        let mut order = self.running.clone();
        order.sort_by_key(|&r| !self.requests[r].starved);
        for (at, &r) in order.iter().enumerate() {
            if !self.running.contains(&r) {
                continue;
            }
            self.run(r, &mut plan, &mut budget, &order[at + 1..]);
        }
        if plan.preempted.len() == given_up {
            let mut at = 0;
            while budget > 0 && self.running.len() < self.config.max_num_seqs as usize {
                if at == self.waiting.len() {
                    break;
                }
                let r = self.waiting[at];
                match self.admit(r, &mut plan, &mut budget) {
                    Some(true) => {
                        self.waiting.remove(at);
                    }
                    Some(false) => at += 1,
                    None => break,
                }
            }
        }
        if !plan.rows.is_empty() {
            plan.finished = std::mem::take(&mut self.ended);
            self.flight = plan.rows.clone();
            self.steps += 1;
        }
        plan
    }

    pub fn apply(&mut self, results: &[Given]) {
        let flight = std::mem::take(&mut self.flight);
        assert_eq!(flight.len(), results.len());
        for (row, (tokens, accepted, stop, refresh)) in flight.iter().zip(results) {
            let r = row.request;
            if self.requests[r].ended.is_some() {
                self.give_back(r);
                continue;
            }
            let mut reason = None;
            for &token in tokens {
                let capacity = (self.config.num_blocks * self.config.block_size) as usize;
                let request = &mut self.requests[r];
                request.tokens.push(token);
                let generated = request.tokens.len() - request.prompt_len;
                if request.stop_ids.contains(&token) {
                    reason = Some(FinishReason::Stop);
                } else if generated == request.max_tokens
                    || request.tokens.len() == self.config.max_model_len as usize
                    || request.tokens.len() == capacity + 1
                {
                    reason = Some(FinishReason::Length);
                }
                if reason.is_some() {
                    break;
                }
            }
            if *stop {
                reason = Some(FinishReason::Stop);
            }
            let len = self.requests[r].tokens.len();
            if self.requests[r].canvas.is_some() {
                // A new block begins with a full pass.
                self.requests[r].refresh = *refresh || !tokens.is_empty();
            } else {
                self.requests[r].computed = (row.end + accepted).min(len);
                self.publish(r);
            }
            if reason.is_some() {
                self.requests[r].ended = reason;
                self.ended.push(r);
                self.leave_running(r);
                self.give_back(r);
            }
        }
    }

    fn run(&mut self, r: usize, plan: &mut Plan, budget: &mut usize, behind: &[usize]) {
        let size = self.config.block_size as usize;
        let mut new;
        loop {
            let others = behind.iter().filter(|b| self.running.contains(b)).count();
            let left = budget.saturating_sub(others);
            new = self.rows(r, left);
            if new == 0 && plan.rows.is_empty() {
                new = self.rows(r, *budget);
            }
            self.requests[r].starved = new == 0;
            if new == 0 {
                return;
            }
            let request = &self.requests[r];
            let need = self.positions(r, new).div_ceil(size);
            if need.saturating_sub(request.blocks.len()) <= self.free.len() {
                break;
            }
            let victim = match self.config.policy {
                Policy::Fcfs => *self.running.last().unwrap(),
                Policy::Priority => {
                    *self.running.iter().max_by_key(|&&r| (self.requests[r].priority, r)).unwrap()
                }
            };
            plan.rows.retain(|row| {
                if row.request == victim {
                    *budget += row.end - row.start + row.drafts;
                }
                row.request != victim
            });
            self.preempt(victim);
            plan.preempted.push(victim);
            if victim == r {
                return;
            }
        }
        self.take_blocks(r, self.positions(r, new));
        *budget -= new;
        if self.requests[r].canvas.is_some() {
            plan.rows.push(self.denoise_row(r));
            return;
        }
        let request = &self.requests[r];
        let (start, len) = (request.computed, request.tokens.len());
        let decoding = start + 1 == len && len > request.prompt_len;
        let mut drafts = 0;
        if decoding {
            let request = &self.requests[r];
            let generated = len - request.prompt_len;
            let behind = behind.iter().filter(|b| self.running.contains(b)).map(|&b| &self.requests[b]);
            let lacks = behind.clone().map(|b| {
                if let Some((canvas, _)) = b.canvas {
                    return (b.prompt_len + canvas).div_ceil(size).saturating_sub(b.blocks.len());
                }
                let new =
                    self.piece(b.tokens.len() - b.computed, self.config.max_num_batched_tokens as usize);
                (b.computed + new).div_ceil(size).saturating_sub(b.blocks.len())
            });
            let spare = self.free.len().saturating_sub(lacks.sum());
            drafts = [
                self.config.num_speculative_tokens as usize,
                self.wanted.get(r).copied().unwrap_or(usize::MAX),
                request.most_drafts,
                request.max_tokens - generated - 1,
                self.config.max_model_len as usize - len - 1,
                (self.config.num_blocks as usize * size) - len,
                budget.saturating_sub(behind.count()),
                (request.blocks.len() + spare) * size - len,
            ]
            .into_iter()
            .min()
            .unwrap();
            self.take_blocks(r, len + drafts);
            *budget -= drafts;
        }
        let kind = match (decoding, drafts) {
            (false, _) => Kind::Prefill,
            (true, 0) => Kind::Decode,
            (true, _) => Kind::Verify,
        };
        plan.rows.push(Row {
            request: r,
            kind,
            start,
            end: start + new,
            drafts,
            samples: start + new == len,
        });
    }

    /// `Some(false)`: it waits for its parent. `None`: no room.
    fn admit(&mut self, r: usize, plan: &mut Plan, budget: &mut usize) -> Option<bool> {
        let size = self.config.block_size as usize;
        let request = self.requests[r].clone();
        let len = request.tokens.len();
        let mut computed = 0;
        let mut hits = vec![];
        let mut fork = None;
        if let (Some(p), None) = (request.fork_of, request.admitted_in) {
            let parent = &self.requests[p];
            if self.running.contains(&p) {
                if parent.computed + 1 < request.prompt_len || parent.admitted_in == Some(self.steps) {
                    return Some(false);
                }
                fork = Some(p);
            } else if self.waiting.contains(&p) && parent.preemptions == 0 {
                return Some(false);
            }
        }
        if let Some(p) = fork {
            if self.free.is_empty() {
                return None;
            }
            computed = request.prompt_len - 1;
            hits = self.requests[p].blocks[..computed / size].to_vec();
        } else {
            if request.reads_cache && self.config.enable_prefix_caching && request.canvas.is_none() {
                while let Some(block) = self.find(&request.tokens, (hits.len() + 1) * size, request.salt) {
                    if (hits.len() + 1) * size > len - 1 {
                        break;
                    }
                    hits.push(block);
                }
                computed = hits.len() * size;
            }
            let whole =
                !self.config.enable_chunked_prefill && len <= self.config.max_num_batched_tokens as usize;
            if whole && len - computed > *budget {
                return None;
            }
            let from_free = hits.iter().filter(|b| self.free.contains(b)).count();
            let whole = len.max(request.canvas.map_or(0, |(canvas, _)| request.prompt_len + canvas));
            if whole.div_ceil(size) - hits.len() + from_free > self.free.len() {
                return None;
            }
            if request.canvas.is_some() && self.rows(r, *budget) == 0 {
                return None;
            }
        }
        self.free.retain(|b| !hits.contains(b));
        self.requests[r].blocks = hits;
        if let Some(p) = fork
            && computed % size != 0
        {
            self.take_blocks(r, computed);
            let src = self.requests[p].blocks[computed / size];
            let dst = self.requests[r].blocks[computed / size];
            plan.copies.push((src, dst));
        }
        let steps = self.steps;
        let request = &mut self.requests[r];
        request.computed = computed;
        request.cached.get_or_insert(computed);
        request.admitted_in = Some(steps);
        let new = self.rows(r, *budget);
        self.take_blocks(r, self.positions(r, new));
        *budget -= new;
        if self.requests[r].canvas.is_some() {
            plan.rows.push(self.denoise_row(r));
            self.running.push(r);
            return Some(true);
        }
        let request = &self.requests[r];
        let decoding = computed + 1 == len && len > request.prompt_len;
        plan.rows.push(Row {
            request: r,
            kind: if decoding { Kind::Decode } else { Kind::Prefill },
            start: computed,
            end: computed + new,
            drafts: 0,
            samples: computed + new == len,
        });
        self.running.push(r);
        Some(true)
    }

    /// Token rows that the next row of a request has under so much of the budget: a pass over a canvas is whole.
    fn rows(&self, r: usize, budget: usize) -> usize {
        let request = &self.requests[r];
        match request.canvas {
            None => self.piece(request.tokens.len() - request.computed, budget),
            Some((canvas, block)) => {
                let rows = if request.refresh { request.prompt_len + canvas } else { block };
                if rows <= budget { rows } else { 0 }
            }
        }
    }

    /// Positions that need a slot once a row of `new` tokens has run.
    fn positions(&self, r: usize, new: usize) -> usize {
        let request = &self.requests[r];
        match request.canvas {
            None => request.computed + new,
            Some((canvas, _)) => request.prompt_len + canvas,
        }
    }

    fn denoise_row(&self, r: usize) -> Row {
        let request = &self.requests[r];
        let (canvas, block) = request.canvas.unwrap();
        let len = request.tokens.len();
        let (start, end) =
            if request.refresh { (0, request.prompt_len + canvas) } else { (len, len + block) };
        let kind = Kind::Denoise { block: len as u32..(len + block) as u32, full: request.refresh };
        Row { request: r, kind, start, end, drafts: 0, samples: true }
    }

    fn piece(&self, left: usize, budget: usize) -> usize {
        let chunk = self.config.prefill_chunk.map_or(usize::MAX, |c| c as usize);
        left.min(budget).min(chunk)
    }

    fn take_blocks(&mut self, r: usize, tokens: usize) {
        let need = tokens.div_ceil(self.config.block_size as usize);
        while self.requests[r].blocks.len() < need {
            let block = self.free.remove(0);
            self.published.retain(|(b, _, _)| *b != block);
            self.requests[r].blocks.push(block);
        }
    }

    fn publish(&mut self, r: usize) {
        if !self.config.enable_prefix_caching {
            return;
        }
        let size = self.config.block_size as usize;
        let request = &self.requests[r];
        for (index, &block) in request.blocks.iter().enumerate() {
            let end = (index + 1) * size;
            if end <= request.computed && !self.is_published(block) {
                self.published.push((block, request.tokens[..end].to_vec(), request.salt));
            }
        }
    }

    fn find(&self, tokens: &[u32], end: usize, salt: Salt) -> Option<u32> {
        let prefix = tokens.get(..end)?;
        self.published.iter().find(|(_, t, s)| t == prefix && *s == salt).map(|(b, _, _)| *b)
    }

    fn is_published(&self, block: u32) -> bool {
        self.published.iter().any(|(b, _, _)| *b == block)
    }

    fn give_back(&mut self, r: usize) {
        let blocks = std::mem::take(&mut self.requests[r].blocks);
        let mut front = vec![];
        for block in blocks.into_iter().rev() {
            if self.requests.iter().any(|q| q.blocks.contains(&block)) {
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

    fn preempt(&mut self, r: usize) {
        self.leave_running(r);
        self.give_back(r);
        self.requests[r].computed = 0;
        self.requests[r].refresh = true;
        self.requests[r].starved = false;
        self.requests[r].preemptions += 1;
        self.line_up(r, true);
    }

    fn line_up(&mut self, r: usize, preempted: bool) {
        if preempted {
            self.waiting.insert(0, r);
        } else {
            self.waiting.push(r);
        }
        if self.config.policy == Policy::Priority {
            let requests = &self.requests;
            self.waiting.sort_by_key(|&w| (requests[w].priority, w));
        }
    }

    fn leave_running(&mut self, r: usize) {
        self.running.retain(|&q| q != r);
    }
}
