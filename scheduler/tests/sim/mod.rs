//! An engine in simulated time: acceptance is drawn, and what a step takes is stated.
#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;

use pagedraft_scheduler::{
    Applied, CostCurve, DraftControl, RequestKey, RequestSpec, RowOutcome, Scheduler, SchedulerConfig,
    StepCosts, StepOutcome, StepPlan, StepTimes,
};

/// A number in 0 .. 1 that is a function of its keys.
pub fn draw(seed: u64, a: u64, b: u64) -> f64 {
    let mut z = seed.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (a << 32) ^ b;
    for _ in 0..2 {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// How a forward's time grows with its rows; 1 is a decode step of one row, which takes 10 ms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Bound by memory, then by arithmetic: what a CPU does.
    Cpu,
    /// Every row costs, from the start.
    Linear,
    /// Tiles of 16 rows.
    Stairs,
}

pub const UNIT_US: f64 = 10_000.0;

impl Shape {
    pub fn us(self, rows: f64) -> f64 {
        if rows <= 0.0 {
            return 0.0;
        }
        UNIT_US
            * match self {
                Self::Cpu if rows <= 8.0 => 1.0 + 0.05 * (rows - 1.0) / 7.0,
                Self::Cpu if rows <= 16.0 => 1.05 + 0.1 * (rows - 8.0) / 8.0,
                Self::Cpu => 1.15 + 0.35 * (rows - 16.0) / 24.0,
                Self::Linear => 1.0 + 0.25 * (rows - 1.0),
                Self::Stairs => 0.7 + 0.3 * (rows / 16.0).ceil(),
            }
    }
}

/// The machine, and how well it is known.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub seed: u64,
    pub shape: Shape,
    /// A forward of the proposer, of the target's; 0 is a proposer without a model.
    pub draft: f64,
    pub per_step_us: f64,
    /// Every calibrated point is off by up to this share, at random.
    pub calibration_noise: f64,
    /// Every measured time is.
    pub time_noise: f64,
    /// How many of the measured times are three times too long.
    pub outliers: f64,
}

impl World {
    pub fn exact(shape: Shape, draft: f64) -> Self {
        Self {
            seed: 1,
            shape,
            draft,
            per_step_us: 50.0,
            calibration_noise: 0.0,
            time_noise: 0.1,
            outliers: 0.01,
        }
    }

    pub fn costs(&self) -> StepCosts {
        let sizes = [
            1, 2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 33, 40, 48, 49, 64, 65, 80, 81, 96, 97, 112, 113, 128, 129,
            160, 161, 192, 193, 256, 257, 320, 321, 384, 385, 512, 513, 768, 1024,
        ];
        let curve = |of: f64, salt| CostCurve {
            points: sizes
                .iter()
                .map(|&rows| {
                    let noise = 2.0 * draw(self.seed, salt, u64::from(rows)) - 1.0;
                    (rows, of * self.shape.us(f64::from(rows)) * (1.0 + self.calibration_noise * noise))
                })
                .collect(),
            us_per_context: 0.0,
            us_per_read: 0.0,
        };
        StepCosts {
            target: curve(1.0, 1 << 20),
            draft: if self.draft > 0.0 { curve(self.draft, 2 << 20) } else { CostCurve::default() },
            draft_per_step_us: self.per_step_us,
            overhead_us: 300.0,
            proposer_keeps_kv: self.draft > 0.0,
        }
    }
}

/// What drafts a request is given, and which are accepted.
#[derive(Clone, Copy, Debug)]
pub struct Drafts {
    /// Probability that a draft is accepted, before and from a length on.
    pub accepted: (f64, f64),
    pub changes_at: u32,
    /// Probability that any draft is given.
    pub given: f64,
}

impl Drafts {
    pub fn accepted(share: f64) -> Self {
        Self { accepted: (share, share), changes_at: 0, given: 1.0 }
    }
}

pub struct Sim {
    pub scheduler: Scheduler,
    pub world: World,
    pub plan: StepPlan,
    pub outcome: StepOutcome<()>,
    pub applied: Vec<Applied>,
    /// What each request's drafts are like, its number, and the proposer's length.
    requests: BTreeMap<RequestKey, (Drafts, u64, u32)>,
    pub us: f64,
    pub tokens: u64,
    pub steps: u64,
    pub proposing_us: f64,
}

/// How the length of drafts is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    Fixed(u16),
    Auto(u16),
}

impl Sim {
    pub fn new(world: World, lengths: Lengths, seats: u32, max_len: u32) -> Self {
        Self::with_budget(world, lengths, seats, max_len, 8192)
    }

    pub fn with_budget(world: World, lengths: Lengths, seats: u32, max_len: u32, budget: u32) -> Self {
        let (Lengths::Fixed(drafts) | Lengths::Auto(drafts)) = lengths;
        let config = SchedulerConfig {
            num_blocks: (seats + 1) * (max_len + 64).div_ceil(16),
            max_num_seqs: seats,
            max_num_batched_tokens: budget,
            max_model_len: max_len + 1,
            num_speculative_tokens: drafts,
            enable_prefix_caching: false,
            ..SchedulerConfig::default()
        };
        let mut scheduler = Scheduler::new(config).unwrap();
        if matches!(lengths, Lengths::Auto(_)) {
            scheduler.set_draft_control(Some(DraftControl::new(drafts, &world.costs())));
        }
        Self {
            scheduler,
            world,
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            requests: BTreeMap::new(),
            us: 0.0,
            tokens: 0,
            steps: 0,
            proposing_us: 0.0,
        }
    }

    pub fn submit(&mut self, prompt_len: u32, max_tokens: u32, drafts: Drafts) -> RequestKey {
        let number = self.requests.len() as u64;
        let prompt = (0..prompt_len).map(|i| number as u32 * 10_000 + i).collect();
        let key = self.scheduler.submit(RequestSpec::new(prompt, max_tokens)).unwrap();
        self.requests.insert(key, (drafts, number, 0));
        key
    }

    /// One step; gives the tokens it gave.
    pub fn step(&mut self) -> u64 {
        self.scheduler.step(&mut self.plan).unwrap();
        self.outcome.id = self.plan.id;
        self.outcome.rows.clear();
        self.outcome.tokens.clear();
        let seed = self.world.seed;
        let mut rows = 0;
        let mut asked = 0;
        let mut forwards = [0.0; 33];
        for row in &self.plan.rows {
            let (drafts, number, drafted) = self.requests.get_mut(&row.request).unwrap();
            let chance =
                if row.tokens.end < drafts.changes_at { drafts.accepted.0 } else { drafts.accepted.1 };
            let at = |i: u32| u64::from(row.tokens.end + i);
            asked += u32::from(row.drafts_max > 0);
            let gives = draw(seed + 7, *number, at(0)) < drafts.given;
            let num_drafts = if gives { row.drafts_max } else { 0 };
            let hit = |&i: &u32| draw(seed, *number, at(i)) < chance;
            let num_accepted = (0..u32::from(num_drafts)).take_while(hit).count() as u16;
            if num_drafts > 0 {
                forwards[0] += f64::from(row.tokens.end - *drafted);
                forwards[1..usize::from(num_drafts)].iter_mut().for_each(|n| *n += 1.0);
                *drafted = row.tokens.end + u32::from(num_accepted.min(num_drafts - 1));
            }
            rows += row.tokens.end - row.tokens.start + u32::from(num_drafts);
            let start = self.outcome.tokens.len() as u32;
            if row.samples {
                self.outcome.tokens.resize(self.outcome.tokens.len() + usize::from(num_accepted) + 1, 1);
            }
            self.outcome.rows.push(RowOutcome {
                tokens: start..self.outcome.tokens.len() as u32,
                num_drafts,
                num_accepted,
                ..RowOutcome::of(row.request)
            });
        }
        let forward = |n: f64| self.world.draft * self.world.shape.us(n);
        let per_step = if asked > 0 { self.world.per_step_us } else { 0.0 };
        let propose = per_step + forwards.iter().map(|&n| forward(n)).sum::<f64>();
        let execute = self.world.shape.us(f64::from(rows));
        self.scheduler.apply(&self.outcome, &mut self.applied).unwrap();
        let noisy = |us: f64, salt| {
            let outlier = if draw(seed, salt + 1, self.steps) < self.world.outliers { 3.0 } else { 1.0 };
            us * outlier * (1.0 + self.world.time_noise * (2.0 * draw(seed, salt, self.steps) - 1.0))
        };
        let (propose_us, execute_us) = (noisy(propose, 3 << 20), noisy(execute, 5 << 20));
        let total_us = propose_us + execute_us + noisy(300.0, 9 << 20);
        self.scheduler.observe(&StepTimes { propose_us, execute_us, total_us });
        let tokens = self.applied.iter().map(|one| u64::from(one.tokens.end - one.tokens.start)).sum();
        self.us += propose + execute + 300.0;
        self.proposing_us += propose;
        self.tokens += tokens;
        self.steps += 1;
        tokens
    }

    /// Runs until `tokens` more were given; gives tokens a millisecond.
    pub fn run(&mut self, tokens: u64) -> f64 {
        let (us, before) = (self.us, self.tokens);
        while self.tokens < before + tokens && self.scheduler.has_unfinished() {
            self.step();
        }
        (self.tokens - before) as f64 / (self.us - us) * 1000.0
    }
}
