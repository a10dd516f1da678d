//! What stands in for the engine around a proposer: known tokens, plans, random numbers.
#![allow(dead_code, reason = "each test file takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::HashMap;

use pagedraft_block_manager::{BlockId, GroupId};
use pagedraft_scheduler::{
    Kind, KvView, PlanRow, RequestKey, RequestSpec, Scheduler, SchedulerConfig, StepPlan,
};
use pagedraft_spec_decode::proposer::{Proposer, Proposing};
use pagedraft_spec_decode::sampling::philox4x32;
use pagedraft_spec_decode::{Drafts, Registered, Requests};

/// Random numbers out of a counter.
pub struct Dice {
    seed: u64,
    counter: u32,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self { seed, counter: 0 }
    }

    pub fn below(&mut self, n: u32) -> u32 {
        self.counter += 1;
        philox4x32([self.counter, 0, 0, 77], [self.seed as u32, (self.seed >> 32) as u32])[0] % n
    }

    pub fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    pub fn tokens(&mut self, n: u32, vocab: u32) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab)).collect()
    }
}

/// The requests, without a target.
pub struct Stage {
    keys: Scheduler,
    pub tokens: HashMap<RequestKey, Vec<u32>>,
    pub requests: Requests,
}

impl Stage {
    pub fn new() -> Self {
        // Only its keys are wanted.
        let keys = Scheduler::new(SchedulerConfig { num_blocks: 64, ..SchedulerConfig::default() }).unwrap();
        Self { keys, tokens: HashMap::new(), requests: Requests::default() }
    }

    pub fn enter(&mut self, tokens: Vec<u32>, registered: Registered) -> RequestKey {
        let request = self.keys.submit(RequestSpec::new(vec![0], 1)).unwrap();
        self.requests.insert(request, registered);
        self.tokens.insert(request, tokens);
        request
    }

    /// Ends a request; its place may be given out again.
    pub fn leave(&mut self, request: RequestKey) {
        self.keys.abort(request);
        self.keys.step(&mut StepPlan::default());
        self.tokens.remove(&request);
        self.requests.remove(request);
    }

    /// One step of verify rows, each with the most drafts it may have.
    pub fn propose(&self, proposer: &mut impl Proposer, rows: &[(RequestKey, u16)], drafts: &mut Drafts) {
        let row = |&(request, drafts_max): &(RequestKey, u16)| {
            let len = self.tokens[&request].len() as u32;
            PlanRow { request, kind: Kind::Verify, tokens: len - 1..len, drafts_max, samples: true }
        };
        let plan = StepPlan { rows: rows.iter().map(row).collect(), ..StepPlan::default() };
        let all: Vec<u32> = (0..rows.len() as u32).collect();
        drafts.begin(rows.len());
        let step = Proposing { plan: &plan, kv: self, requests: &self.requests, rows: &all };
        proposer.propose(&step, drafts).unwrap();
    }
}

impl KvView for Stage {
    fn tokens(&self, request: RequestKey) -> &[u32] {
        &self.tokens[&request]
    }

    fn block_table(&self, _: RequestKey, _: GroupId) -> &[BlockId] {
        &[]
    }

    fn block_size(&self) -> u32 {
        16
    }
}
