//! What stands in for the engine around a proposer: known tokens, plans, random numbers.
#![allow(dead_code, reason = "each test file takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::HashMap;

use pagedraft_block_manager::{BlockId, BlockManager, GroupId, KvIndex, Lengths, Salt, SequenceId};
use pagedraft_scheduler::{
    Kind, KvView, PlanRow, RequestKey, RequestSpec, Scheduler, SchedulerConfig, SlotCounts, StepPlan,
};
use pagedraft_spec_decode::proposer::{Proposer, Proposing, Verified};
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

/// The requests, without a target, and the KV blocks of a draft model.
pub struct Stage {
    keys: Scheduler,
    pub tokens: HashMap<RequestKey, Vec<u32>>,
    pub requests: Requests,
    /// The pool, whose group 1 is the draft model's; without, nobody keeps KV.
    pub blocks: Option<BlockManager>,
    sequences: HashMap<RequestKey, SequenceId>,
    /// Rows of the last step, and the slots that they may use in the draft's group.
    rows: Vec<RequestKey>,
    needs: SlotCounts,
}

/// The draft model's KV group.
const DRAFT: GroupId = GroupId(1);

impl Stage {
    pub fn new() -> Self {
        // Only its keys are wanted.
        let keys = Scheduler::new(SchedulerConfig { num_blocks: 64, ..SchedulerConfig::default() }).unwrap();
        Self {
            keys,
            tokens: HashMap::new(),
            requests: Requests::default(),
            blocks: None,
            sequences: HashMap::new(),
            rows: Vec::new(),
            needs: SlotCounts::default(),
        }
    }

    pub fn with(blocks: BlockManager) -> Self {
        Self { blocks: Some(blocks), ..Self::new() }
    }

    pub fn enter(&mut self, tokens: Vec<u32>, registered: Registered) -> RequestKey {
        let request = self.keys.submit(RequestSpec::new(vec![0], 1)).unwrap();
        self.requests.insert(request, registered);
        self.tokens.insert(request, tokens);
        if let Some(blocks) = &mut self.blocks {
            self.sequences.insert(request, blocks.open(Salt::NONE));
        }
        request
    }

    /// Takes a request's KV blocks back: it was preempted.
    pub fn forget(&mut self, request: RequestKey) {
        if let (Some(blocks), Some(&sequence)) = (&mut self.blocks, self.sequences.get(&request)) {
            blocks.clear(sequence).unwrap();
        }
    }

    pub fn used(&self) -> u32 {
        self.blocks.as_ref().unwrap().group_stats(DRAFT).used
    }

    /// Ends a request; its place may be given out again.
    pub fn leave(&mut self, request: RequestKey) {
        self.keys.abort(request).unwrap();
        self.keys.step(&mut StepPlan::default()).unwrap();
        if let (Some(blocks), Some(sequence)) = (&mut self.blocks, self.sequences.remove(&request)) {
            blocks.free(sequence).unwrap();
        }
        self.tokens.remove(&request);
        self.requests.remove(request);
    }

    /// One step of verify rows, each with the most drafts it may have.
    pub fn propose(&mut self, proposer: &mut impl Proposer, rows: &[(RequestKey, u16)], drafts: &mut Drafts) {
        self.reserve(rows);
        let row = |&(request, drafts_max): &(RequestKey, u16)| {
            let len = self.tokens[&request].len() as u32;
            let (kind, tokens) = (Kind::Verify, len - 1..len);
            PlanRow { request, kind, tokens, segments: 0..1, thins: false, drafts_max, samples: true }
        };
        let needs = self.needs.clone();
        let plan = StepPlan { rows: rows.iter().map(row).collect(), needs, ..StepPlan::default() };
        let all: Vec<u32> = (0..rows.len() as u32).collect();
        drafts.begin(rows.len());
        let step = Proposing { plan: &plan, kv: self, requests: &self.requests, rows: &all };
        proposer.propose(&step, drafts).unwrap();
    }
}

impl Stage {
    /// Reserves slots for the drafts' KV as the scheduler does.
    pub fn reserve(&mut self, rows: &[(RequestKey, u16)]) -> &SlotCounts {
        self.rows = rows.iter().map(|row| row.0).collect();
        self.needs.begin(2);
        for &(request, drafts) in rows {
            let need = self.needs.push();
            let Some(blocks) = &mut self.blocks else { continue };
            let (sequence, tokens) = (self.sequences[&request], &self.tokens[&request]);
            let len = tokens.len() as u32;
            if blocks.block_table(sequence, DRAFT).is_empty() {
                blocks.take_group_hit(sequence, DRAFT, tokens, len - 1).unwrap();
            }
            let slots = len + u32::from(drafts) - 1;
            match blocks.reserve_group(sequence, DRAFT, slots).unwrap() {
                Some(()) => need[1] = slots,
                None => blocks.clear_group(sequence, DRAFT).unwrap(),
            }
        }
        &self.needs
    }

    /// No slots in either group, for each row of the step.
    pub fn no_slots(&self) -> SlotCounts {
        let mut took = SlotCounts::default();
        took.begin(2);
        self.rows.iter().for_each(|_| took.push().fill(0));
        took
    }

    /// Tells the proposer what became of its drafts; `tokens` has those that were accepted already.
    pub fn verified(&mut self, proposer: &mut impl Proposer, accepted: &[u16]) {
        let took = self.took(proposer, accepted);
        self.commit(&took);
    }

    /// Commits what the rows of the step took in the draft's group.
    pub fn commit(&mut self, took: &SlotCounts) {
        let Some(blocks) = &mut self.blocks else { return };
        for (i, request) in self.rows.iter().enumerate().filter(|(i, _)| took.row(*i)[1] > 0) {
            blocks.commit(self.sequences[request], DRAFT, &self.tokens[request], took.row(i)[1]).unwrap();
        }
    }

    /// The slots by row and group that the proposer says hold accepted tokens.
    pub fn took(&self, proposer: &mut impl Proposer, accepted: &[u16]) -> SlotCounts {
        let mut took = self.no_slots();
        let rows: Vec<u32> = (0..self.rows.len() as u32).collect();
        proposer.verified(&mut Verified { accepted, rows: &rows, took: &mut took });
        took
    }
}

impl KvView for Stage {
    fn tokens(&self, request: RequestKey) -> &[u32] {
        &self.tokens[&request]
    }

    fn block_table(&self, request: RequestKey, group: GroupId) -> &[BlockId] {
        let sequence = self.sequences.get(&request);
        let blocks = self.blocks.as_ref().zip(sequence);
        blocks.map_or(&[], |(blocks, &sequence)| blocks.block_table(sequence, group))
    }

    fn lengths(&self, request: RequestKey, group: GroupId) -> Lengths {
        let blocks = self.blocks.as_ref().zip(self.sequences.get(&request));
        blocks.and_then(|(blocks, &sequence)| blocks.lengths(sequence, group).ok()).unwrap_or_default()
    }

    fn index(&self, _: RequestKey, _: GroupId) -> KvIndex<'_> {
        KvIndex::Position
    }

    fn num_groups(&self) -> usize {
        2
    }

    fn block_size(&self) -> u32 {
        self.blocks.as_ref().map_or(16, |blocks| blocks.block_size().get())
    }
}
