//! A scheduler, a fake executor and the three documents between them.
#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;

use pagedraft_block_manager::GroupId;
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{
    Applied, Executor, FinishReason, KvView, RequestKey, RequestSpec, Scheduler, SchedulerConfig,
    StepOutcome, StepPlan,
};

pub struct Rig {
    pub scheduler: Scheduler,
    pub fake: FakeExecutor,
    pub plan: StepPlan,
    pub outcome: StepOutcome<()>,
    pub applied: Vec<Applied>,
    /// Tokens kept, by request.
    pub output: BTreeMap<RequestKey, Vec<u32>>,
    pub finish: BTreeMap<RequestKey, FinishReason>,
}

impl Rig {
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config).unwrap(),
            fake: FakeExecutor::new(),
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            output: BTreeMap::new(),
            finish: BTreeMap::new(),
        }
    }

    pub fn submit(&mut self, spec: RequestSpec, script: Script) -> RequestKey {
        let prompt_len = spec.prompt.len() as u32;
        let key = self.scheduler.submit(spec).unwrap();
        self.fake.insert(key, prompt_len, script);
        self.output.insert(key, vec![]);
        key
    }

    /// A request of `prompt_len` tokens that nobody shares.
    pub fn request(&mut self, prompt_len: u32, max_tokens: u32) -> RequestKey {
        let first = 1000 * self.output.len() as u32;
        let prompt = (first..first + prompt_len).collect();
        self.submit(RequestSpec::new(prompt, max_tokens), Script::default())
    }

    pub fn plan(&mut self) -> &StepPlan {
        self.scheduler.step(&mut self.plan).unwrap();
        &self.plan
    }

    pub fn execute(&mut self) {
        let Ok(()) = self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome);
    }

    pub fn apply(&mut self) {
        self.scheduler.apply(&self.outcome, &mut self.applied).unwrap();
        for one in &self.applied {
            let range = one.tokens.start as usize..one.tokens.end as usize;
            let output = self.output.entry(one.request).or_default();
            output.extend(&self.outcome.tokens[range]);
            if let Some(reason) = one.finish {
                self.finish.insert(one.request, reason);
            }
        }
    }

    /// One whole step; gives (request, start, end) of its rows.
    pub fn step(&mut self) -> Vec<(RequestKey, u32, u32)> {
        self.plan();
        self.execute();
        self.apply();
        self.rows()
    }

    pub fn rows(&self) -> Vec<(RequestKey, u32, u32)> {
        let rows = self.plan.rows.iter();
        rows.map(|row| (row.request, row.tokens.start, row.tokens.end)).collect()
    }

    pub fn drain(&mut self) -> usize {
        let mut steps = 0;
        while self.scheduler.has_unfinished() {
            self.step();
            assert!(!self.plan.rows.is_empty(), "an empty plan with requests left");
            steps += 1;
            assert!(steps < 100_000, "livelock");
        }
        steps
    }

    pub fn table(&self, key: RequestKey) -> Vec<u32> {
        let table = self.scheduler.block_table(key, GroupId(0));
        table.iter().map(|block| block.0).collect()
    }

    pub fn cached(&self, key: RequestKey) -> u32 {
        self.scheduler.request(key).unwrap().num_cached_tokens
    }
}
